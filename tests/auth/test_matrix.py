"""The authorization matrix: every endpoint and topic for every kind of client."""

import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from progressd.auth.watch_tokens import new_token, secret_from
from progressd.core.events import Registration, SubmitEvent
from progressd.http.app import build_app
from support import keys
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.keys import bearer
from support.peer import Peer, request, upgrade
from support.samples import job_id

JOB, OTHER, BATCH = job_id(1), job_id(2), str(uuid.UUID(int=3))
SCAN = {"team": "scan"}

# The scope of each route ("" if public), and its subject: a job, a batch, an upload, visible jobs, numbers, everything,
# or the key itself.
ROUTES: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    ("GET", "/"): ("", ""),
    ("GET", "/static/<path:filename>"): ("", ""),
    ("GET", "/jobs/<job_id>"): ("", ""),
    ("GET", "/batches/<batch_id>"): ("", ""),
    ("GET", "/stats"): ("", ""),
    ("GET", "/api/health"): ("", ""),
    ("GET", "/api/health/live"): ("", ""),
    ("GET", "/api/health/ready"): ("", ""),
    ("GET", "/api/auth/status"): ("", "key"),
    ("GET", "/api/docs"): ("", ""),
    ("GET", "/api/openapi.json"): ("", ""),
    ("GET", "/api/rate-limit/status"): ("", ""),
    ("GET", "/api/jobs"): ("read", "seen"),
    ("GET", "/api/jobs/history"): ("read", "seen"),
    ("GET", "/api/events"): ("read", "seen"),
    ("GET", "/api/stats"): ("read", "numbers"),
    ("GET", "/api/stats/jobs"): ("read", "numbers"),
    ("GET", "/api/stats/system"): ("read", "numbers"),
    ("GET", "/api/stats/history"): ("read", "all"),
    ("GET", "/api/metrics"): ("read", "all"),
    ("GET", "/api/jobs/<job_id>"): ("read", "job"),
    ("GET", "/api/jobs/<job_id>/download"): ("read", "job"),
    ("GET", "/api/jobs/<job_id>/previews"): ("read", "job"),
    ("GET", "/api/jobs/<job_id>/previews/<page_number>"): ("read", "job"),
    ("GET", "/api/jobs/<job_id>/events"): ("read", "job"),
    ("GET", "/api/jobs/<job_id>/log"): ("read", "log"),
    ("GET", "/api/jobs/<job_id>/log/events"): ("read", "log"),
    ("GET", "/api/jobs/<job_id>/log/lines"): ("read", "log"),
    ("GET", "/api/batch/<batch_id>"): ("read", "batch"),
    ("GET", "/api/batch/<batch_id>/jobs"): ("read", "batch"),
    ("GET", "/api/batch/<batch_id>/events"): ("read", "batch"),
    ("GET", "/badge/job/<job_id>.<any(svg, json):form>"): ("read", "job"),
    ("GET", "/badge/kind/<path:kind>.<any(svg, json):form>"): ("read", "seen"),
    ("GET", "/ws"): ("read", "seen"),
    ("GET", "/ws/<path:path>"): ("read", "seen"),
    ("POST", "/api/token"): ("read", "seen"),
    ("POST", "/api/jobs/<job_id>/token"): ("read", "job"),
    ("POST", "/api/batch/<batch_id>/token"): ("read", "batch"),
    ("POST", "/api/convert"): ("write", "seen"),
    ("POST", "/api/batch"): ("write", "seen"),
    ("POST", "/api/jobs"): ("write", "seen"),
    ("POST", "/api/events"): ("write", "seen"),
    ("POST", "/api/jobs/<job_id>/events"): ("write", "job"),
    ("POST", "/api/jobs/<job_id>/retry"): ("write", "job"),
    ("GET", "/ping/<key>/<slug>"): ("write", "seen"),
    ("POST", "/ping/<key>/<slug>"): ("write", "seen"),
    ("GET", "/ping/<key>/<slug>/<signal>"): ("write", "seen"),
    ("POST", "/ping/<key>/<slug>/<signal>"): ("write", "seen"),
    ("DELETE", "/api/jobs/<job_id>"): ("write", "job"),
    ("DELETE", "/api/batch/<batch_id>"): ("write", "batch"),
    ("GET", "/api/batch/<batch_id>/download"): ("read", "batch"),
    ("POST", "/api/batch/<batch_id>/retry"): ("write", "batch"),
    ("GET", "/embed/<job_id>"): ("", ""),
    ("GET", "/api/pipelines"): ("read", "numbers"),
    ("POST", "/api/uploads"): ("write", "seen"),
    ("GET", "/api/uploads/<upload_id>"): ("write", "upload"),
    ("POST", "/api/uploads/<upload_id>"): ("write", "upload"),
    ("PATCH", "/api/uploads/<upload_id>"): ("write", "upload"),
    ("DELETE", "/api/uploads/<upload_id>"): ("write", "upload"),
}
STREAMS: Final = {
    "/ws": ("read", "dialogue"),
    "/ws/jobs": ("read", "seen"),
    f"/ws/jobs/{JOB}": ("read", "job"),
    f"/ws/jobs/{JOB}/log": ("read", "log"),
    f"/ws/batch/{BATCH}": ("read", "batch"),
    "/ws/publish": ("write", "seen"),
}
TUS: Final = {
    "Tus-Resumable": "1.0.0",
    "Upload-Offset": "0",
    "Content-Type": "application/offset+octet-stream",
    "X-HTTP-Method-Override": "PATCH",
}


class Visitor(NamedTuple):
    """A client. `sees`: the subjects it may see; `rejected`: its key is invalid."""

    scopes: str = ""
    labels: Mapping[str, str] = {}
    sees: tuple[str, ...] = ("job", "log", "batch", "seen", "numbers", "all")
    rejected: bool = False
    topic: str = ""
    expires: float | None = None


VISITORS: Final = {
    "nobody": Visitor(rejected=True),
    "a wrong key": Visitor(rejected=True),
    "read": Visitor("read"),
    "write": Visitor("write"),
    "read and write": Visitor("read write"),
    "admin": Visitor("admin"),
    "the right label": Visitor("read write", SCAN, ("job", "log", "batch", "seen", "numbers")),
    "the wrong label": Visitor("read write admin", {"team": "print"}, ("seen", "numbers")),
    "one label too many": Visitor("read write", {**SCAN, "of": "eve"}, ("seen", "numbers")),
    "expired": Visitor("read write admin", rejected=True, expires=-1),
    "revoked": Visitor("read write admin", rejected=True),
    "a token of the job": Visitor("read", sees=("job",), topic=f"job:{JOB}"),
    "a token of another job": Visitor("read", sees=(), topic=f"job:{OTHER}"),
    "a token of the batch": Visitor("read", sees=("batch",), topic=f"batch:{BATCH}"),
    "a token of all jobs": Visitor("read", sees=("job", "batch", "seen"), topic="jobs"),
    "the same as a subprotocol": Visitor("read", sees=("job", "batch", "seen"), topic="jobs"),
    "an expired token": Visitor(rejected=True, topic="jobs", expires=-1),
}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    async with running_daemon(tmp_path, auth={"required": True}) as running:
        picture = {"page_number": 1, "preview_base64": "/9g=", "stage": "a", "width": 1, "height": 1}
        preview = {"type": "page_preview", "job_id": JOB, "data": picture}
        await running.report(registered(JOB, labels=SCAN), registered(OTHER), preview)
        of_batch = SubmitEvent(job_id(4), Registration(labels=SCAN), "pdf", batch_id=BATCH)
        await running.daemon.ingest.submit_one(of_batch)
        yield running


def credentials(daemon: RunningDaemon, name: str) -> tuple[dict[str, str], str]:
    """Return the headers and the query of a visitor."""
    visitor, authenticator = VISITORS[name], daemon.daemon.authenticator
    if visitor.topic:
        end = datetime.now(UTC) + timedelta(seconds=visitor.expires or 60)
        token = new_token(secret_from(daemon.settings.auth.token_secret_file), visitor.topic, end)
        if name == "the same as a subprotocol":
            return {"Sec-WebSocket-Protocol": f"progressd, progressd.token.{token}"}, ""
        return {}, f"?token={token}"
    if name in ("nobody", "a wrong key"):
        return ({} if name == "nobody" else bearer("pgd_no")), ""
    file = daemon.settings.auth.keys_file
    known = name.replace(" ", "-")
    secret = keys.add(file, known, *visitor.scopes.split(), expires=visitor.expires, **visitor.labels)
    if name == "revoked":
        keys.revoke(file, known)
    authenticator.load()
    return bearer(secret), ""


def expected(visitor: Visitor, method: str, scope: str, about: str) -> set[int]:
    """Return the allowed statuses; {0} if the request must not be rejected."""
    if not scope:
        return {401} if about == "key" and visitor.rejected and visitor is not VISITORS["nobody"] else {0}
    if visitor.rejected or (visitor.topic and method != "GET"):
        return {401}
    if scope not in visitor.scopes and "admin" not in visitor.scopes:
        return {403}
    if about in visitor.sees:
        return {0}
    if about == "log" and "job" in visitor.sees:  # tokens show jobs, but no logs
        return {403}
    return {404} if about in ("job", "log", "batch", "upload") else {403}


async def status_of(daemon: RunningDaemon, data: bytes) -> int:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(data)
        answer = b""
        while b"\r\n" not in answer:
            answer += await peer.receive()
        return int(answer.split()[1])


def test_the_matrix_lists_every_route() -> None:
    rules = build_app().url_map.iter_rules()
    routes = {(method, rule.rule) for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    assert routes == ROUTES.keys()


async def test_each_visitor_gets_the_allowed_responses(daemon: RunningDaemon) -> None:
    wrong = []
    event = b'{"type": "progress", "data": {"current_step": 1, "total_steps": 2}}'
    for name, visitor in VISITORS.items():
        headers, query = credentials(daemon, name)
        for (method, rule), (scope, about) in ROUTES.items():
            path = rule.replace("<job_id>", JOB).replace("<batch_id>", BATCH).replace("<upload_id>", OTHER)
            path = path.replace("/<int(signed=True):page_number>", "/1").replace("<path:filename>", "main.js")
            path = path.replace("<path:path>", "jobs")
            path = path.replace("<path:kind>", "job").replace("<any(svg, json):form>", "svg")
            ping = rule.startswith("/ping")  # with the key in the path, and no other credentials
            key = headers.get("Authorization", "Bearer none").removeprefix("Bearer ")
            path = path.replace("<key>", key).replace("<slug>", "backup").replace("<signal>", "start")
            body = event if (method, rule) == ("POST", "/api/jobs/<job_id>/events") else b""
            length = {} if method == "GET" else {"Content-Length": str(len(body))}
            if "<upload_id>" in rule:
                length |= TUS
            status = await status_of(
                daemon, request(path + query, length if ping else headers | length, method=method) + body
            )
            allowed = expected(visitor, "POST" if ping else method, scope, about)
            if rule.startswith("/ws") and not visitor.rejected and visitor.scopes != "write":
                allowed = {426}  # not a handshake
            if status in (401, 403, 404, 500) if allowed == {0} else status not in allowed:
                wrong.append((name, method, rule, status, allowed))
    assert not wrong


async def test_only_writers_may_purge_a_job(daemon: RunningDaemon) -> None:
    for number, (name, visitor) in enumerate(VISITORS.items()):
        headers, query = credentials(daemon, name)
        ended = job_id(100 + number)
        await daemon.report(registered(ended, labels=SCAN), progress(ended, 1), completed(ended))
        path = f"/api/jobs/{ended}?purge=true" + query.replace("?", "&")
        status = await status_of(daemon, request(path, headers | {"Content-Length": "0"}, method="DELETE"))
        allowed = expected(visitor, "DELETE", "write", "job")
        assert status in ({200} if allowed == {0} else allowed), name
        assert bool(await daemon.daemon.store.known([ended])) is (status != 200), name


async def test_unknown_methods_require_write(daemon: RunningDaemon) -> None:
    for name, status in [("nobody", 401), ("read", 403), ("write", 405), ("a token of the job", 401)]:
        headers, query = credentials(daemon, name)
        for method in ("PUT", "PATCH", "TRACE", "QUERY"):
            asked = request(f"/api/jobs/{JOB}{query}", headers, method=method)
            assert await status_of(daemon, asked) == status, (name, method)


async def test_each_visitor_gets_the_allowed_websockets(daemon: RunningDaemon) -> None:
    for name, visitor in VISITORS.items():
        headers, query = credentials(daemon, name)
        for path, (scope, about) in STREAMS.items():
            status = await status_of(daemon, upgrade(path + query, headers))
            allowed = {101} if (allowed := expected(visitor, "GET", scope, about)) == {0} else allowed
            if name == "an expired token":
                allowed = {101}  # then closed with 4500, which a page can see
            elif about == "dialogue" and not visitor.rejected and visitor.scopes != "write":
                allowed = {101}  # each topic is checked when it is named
            assert status in allowed, (name, path)
