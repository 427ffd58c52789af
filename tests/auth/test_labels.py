"""A key that is bound to labels sees only jobs with these labels."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace
from progressd.auth.api_keys import Scope
from progressd.auth.authenticator import Identity
from progressd.broadcast.envelope import Envelope
from progressd.core.eta import Forecasts
from progressd.core.events import RegisterEvent, Registration
from progressd.core.job import Job
from progressd.core.messages import ALL_JOBS, JobStatus, Progress, batch_topic, job_topic, topics_of
from progressd.engine.attention import Attention
from progressd.engine.commands import Outcome
from progressd.engine.log_reader import LogReaders
from progressd.engine.view import ClientView, Engine, may_see_message
from progressd.store.base import Filter
from progressd.store.sqlite import SQLiteStore
from support import keys, samples
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import FORM_TYPE, client_of, error_of, file_part, form, post_form
from support.keys import bearer
from support.peer import Peer, request
from support.samples import job_id
from support.spine import Spine, cancel
from support.submitting import PDF
from support.waiting import eventually

OURS, THEIRS, UNKNOWN = job_id(1), job_id(2), job_id(3)
TEAM = {"labels": {"team": "scan"}}


class Side:
    """A daemon, and a client with a key that is bound to team=scan."""

    def __init__(self, daemon: RunningDaemon, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        self.daemon = daemon
        self.client = client
        self.headers = headers


@pytest.fixture
async def side(tmp_path: Path) -> AsyncIterator[Side]:
    headers = bearer(keys.add(tmp_path / "state/keys.json", "scan", "read", "write", team="scan"))
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        client.headers.update(headers)
        await daemon.report(registered(OURS, **TEAM), registered(THEIRS, labels={"team": "print"}))
        await daemon.report(progress(OURS, 1), progress(THEIRS, 1))
        yield Side(daemon, client, headers)


async def test_lists_and_counts_show_only_visible_jobs(side: Side) -> None:
    await side.daemon.report(registered(job_id(4), labels={"team": "scan", "of": "eve"}))
    listed = (await side.client.get("/api/jobs")).json()
    assert ([job["id"] for job in listed["jobs"]], listed["total"]) == ([job_id(4), OURS], 2)
    for path, total in (("?label=of=eve", 1), ("?label=team=print", 0), ("/history", 0)):
        assert (await side.client.get(f"/api/jobs{path}")).json()["total"] == total
    numbers = (await side.client.get("/api/stats")).json()["jobs"]
    assert (numbers["total_jobs"], numbers["queued_jobs"], numbers["active_jobs"]) == (2, 1, 1)


async def test_searches_find_only_visible_jobs(side: Side) -> None:
    for number, team in ((4, "scan"), (5, "print"), (6, "scan"), (7, "print")):
        await side.daemon.report(registered(job_id(number), name="book", labels={"team": team}))
        await side.daemon.report({"type": "error", "job_id": job_id(number), "data": {"message": "no paper"}})
    none = {"running": 0, "waiting": 0, "attention": 0, "done": 0, "all": 0}
    for query, numbers in [
        ("q=book", [6, 4]),
        ("q=print", []),
        (f"q={THEIRS}", []),
        ("attention=true", [6, 4]),
        ("sort=name&q=book", [4, 6]),
        ("sort=-updated&q=paper", [6, 4]),
    ]:
        found, after = list[str](), ""
        while True:
            page = (await side.client.get(f"/api/jobs?{query}&limit=1&counts=true{after}")).json()
            found += [job["id"] for job in page["jobs"]]
            assert page["total"] == len(numbers)
            if not numbers:
                assert page["counts"] == none
            if "next" not in page:
                break
            after = f"&after={page['next']}"
        assert found == [job_id(number) for number in numbers]
    assert (await side.client.get("/api/jobs?counts=true")).json()["counts"]["all"] == 3


async def test_a_hidden_job_looks_like_an_unknown_one(side: Side) -> None:
    json_type = {"Content-Type": "application/json"}
    for method, rest in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/retry"),
        ("GET", "/download"),
        ("GET", "/events"),
        ("POST", "/events"),
    ):
        answers = []
        for job in (THEIRS, UNKNOWN):
            body = json.dumps(progress(job, 2)) if method == "POST" and rest == "/events" else None
            response = await side.client.request(method, f"/api/jobs/{job}{rest}", content=body, headers=json_type)
            same = {name: value for name, value in response.headers.items() if name != "date"}
            answers.append((response.status_code, same, response.text.replace(job, "ID")))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404
    for job in (THEIRS, UNKNOWN):
        rejection = await side.daemon.rejected(f"/ws/jobs/{job}", side.headers)
        assert (rejection.status_code, json.loads(rejection.body)) == (
            404,
            {"error": f"no job {job}", "code": "not_found"},
        )
    assert (await side.daemon.daemon.registry.get(THEIRS)).progress.current_step == 1


async def test_streams_show_only_visible_jobs(side: Side) -> None:
    async with side.daemon.watch("/ws/jobs", side.headers) as watcher, Peer(await side.daemon.connect()) as events:
        await events.send(request("/api/events", side.headers))
        seen = await watcher.receive_until("progress")
        await side.daemon.report(progress(THEIRS, 7), completed(THEIRS), progress(OURS, 7))
        await side.daemon.report(registered(job_id(5)), registered(job_id(6), **TEAM))
        seen += await watcher.receive_until("job_created")
        streamed = b""
        while job_id(6).encode() not in streamed:
            streamed += await events.receive()
    assert {message["job_id"] for message in seen} == {OURS, job_id(6)}
    assert seen[-2]["data"]["current_step"] == 7
    assert OURS.encode() in streamed
    assert THEIRS.encode() not in streamed
    assert job_id(5).encode() not in streamed


IDENTITIES = st.builds(
    Identity,
    labels=st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy")),
    topic=st.sampled_from([None, ALL_JOBS, job_topic(OURS), batch_topic(UNKNOWN)]),
)
JOBS = st.builds(
    lambda number, batch_id, labels: replace(samples.job(number), batch_id=batch_id, labels=labels),
    st.sampled_from([1, 2]),
    st.sampled_from([None, UNKNOWN]),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")),
)


@given(IDENTITIES, JOBS)
def test_a_watcher_sees_the_messages_of_the_jobs_that_it_may_see(identity: Identity, one: Job) -> None:
    message = Progress(one.id, one.progress, batch_id=one.batch_id or UNSET)
    item = Envelope(1, message, one.labels)
    assert may_see_message(identity, item) == identity.may_see(one)
    watched = [topic for topic in topics_of(message) if identity.topic in (None, ALL_JOBS, topic)]
    if watched and not identity.bound_within_topics:
        assert identity.may_see(one)


async def test_events_of_hidden_jobs_are_rejected_line_by_line(side: Side) -> None:
    lines = [progress(OURS, 5), progress(THEIRS, 5), progress(THEIRS.upper(), 5), progress(OURS, 6)]
    response = await side.client.post(
        "/api/events",
        content="\n".join(map(json.dumps, lines)),
        headers={"Content-Type": "application/x-ndjson"},
    )
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert [answer["ok"] for answer in answers] == [True, False, False, True]
    assert answers[1]["error"] == f"no job {THEIRS}"
    assert (await side.daemon.daemon.registry.get(THEIRS)).progress.current_step == 1
    assert (await side.daemon.daemon.registry.get(OURS)).progress.current_step == 6


async def test_events_during_a_hidden_registration_are_rejected(store: SQLiteStore) -> None:
    who = Identity(name="scan", scopes=frozenset([Scope.WRITE]), labels={"team": "scan"})
    answers: list[Outcome] = []
    async with trio.open_nursery() as nursery:
        spine = Spine(store, nursery)
        logs = LogReaders(spine.files.logs, spine.registry)
        attention = Attention(spine.registry, Forecasts())
        engine = Engine(
            store, spine.registry, spine.batches, spine.history, spine.broadcaster, spine.ingest, logs, attention
        )

        async def cancel_theirs() -> None:
            answers.extend(await ClientView(engine, who).submit(cancel(2)))

        others = RegisterEvent(THEIRS, Registration("scan", labels={"team": "print"}))
        nursery.start_soon(spine.submit, others)
        await eventually(lambda: spine.ingest.queued == 1)
        nursery.start_soon(cancel_theirs)
        await eventually(lambda: spine.ingest.queued == 2)
        nursery.start_soon(spine.ingest.run)
        await eventually(lambda: answers)
        nursery.cancel_scope.cancel()
    assert [str(answer) for answer in answers] == [f"no job {THEIRS}"]
    assert (await spine.registry.get(THEIRS)).status is JobStatus.QUEUED


async def test_new_jobs_get_the_labels_of_the_key(side: Side) -> None:
    made = await side.client.post("/api/jobs", json={"labels": {"team": "print", "of": "eve"}})
    assert made.json()["labels"] == {"team": "scan", "of": "eve"}
    submitted = (await post_form(side.client, file_part())).json()["job_id"]
    assert (await side.client.get(f"/api/jobs/{submitted}")).json()["labels"] == {"team": "scan"}
    taken = await side.client.post("/api/jobs", json={"id": THEIRS})
    assert (taken.status_code, taken.json()) == (404, {"error": f"no job {THEIRS}", "code": "not_found"})


async def test_access_keys_do_not_share_idempotency_keys(side: Side, tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "again"}
    other = bearer(keys.add(side.daemon.settings.auth.keys_file, "print", "write", team="print"))
    side.daemon.daemon.authenticator.load()
    ids = []
    for who in (side.headers, other, side.headers):
        side.client.headers.update(who | headers)
        ids.append((await post_form(side.client, file_part())).json()["job_id"])
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    ("path", "field", "made", "remade"),
    [("convert", "file", "job_id", True), ("convert", "file", "job_id", False), ("batch", "files", "batch_id", True)],
)
async def test_a_recreated_key_does_not_replay_old_jobs(
    side: Side, path: str, field: str, made: str, remade: bool
) -> None:
    """Recreate the key as `keys revoke` and `keys add` do, or edit its labels."""
    daemon, file = side.daemon, side.daemon.settings.auth.keys_file
    body, headers = form(file_part(name=field)), {**FORM_TYPE, "Idempotency-Key": "again"}
    first = await side.client.post(f"/api/{path}", content=body, headers=headers)
    if remade:
        keys.revoke(file, "scan")
        side.client.headers.update(bearer(keys.add(file, "scan", "read", "write", team="print")))
    else:
        file.write_bytes(file.read_bytes().replace(b'"scan"\n      }', b'"print"\n      }'))
    daemon.daemon.authenticator.load()
    second = await side.client.post(f"/api/{path}", content=form(file_part(b"%PDF-2", name=field)), headers=headers)
    if remade:
        assert (second.status_code, second.json()[made] != first.json()[made]) == (202, True)
    else:
        assert (second.status_code, error_of(second)[:30]) == (422, "this Idempotency-Key was used ")
    jobs, total = await daemon.daemon.store.list_jobs(Filter(labels=[("team", "scan")]), 10, 0)
    assert total == 2
    assert daemon.daemon.files.input(jobs[0].id).read_bytes() == PDF
    assert list((daemon.settings.state_dir / "uploads").iterdir()) == []


async def test_ends_of_evicted_jobs_are_delivered(side: Side) -> None:
    side.daemon.daemon.registry.max_finished = 1
    jobs = [job_id(number) for number in range(10, 30)]
    before = (await side.client.get(f"/api/jobs/{OURS}")).json()["cursor"]
    async with side.daemon.watch("/ws/jobs", side.headers) as watcher, side.daemon.watch("/ws", side.headers) as many:
        await many.websocket.send_message(json.dumps({"type": "subscribe", "topics": ["jobs"]}))
        await many.receive_until("subscribed")
        await side.daemon.report(*(registered(job, **TEAM) for job in jobs), *(progress(job, 1) for job in jobs))
        await side.daemon.report(completed(THEIRS), *map(completed, jobs))
        for one in (watcher, many):
            seen = list[str]()
            while len(seen) < len(jobs):
                seen.append((await one.receive_until("completed"))[-1]["job_id"])
            assert seen == jobs
    async with side.daemon.watch(f"/ws/jobs?since={before}&interval=60&types=progress", side.headers) as resumed:
        seen = [(await resumed.receive_until("completed"))[-1]["job_id"] for _ in jobs]
        assert seen == jobs


async def test_hidden_topics_of_one_socket_are_rejected(side: Side) -> None:
    async with side.daemon.watch("/ws", side.headers) as watcher:
        topics = [f"job:{OURS}", f"job:{THEIRS}", "jobs"]
        await watcher.websocket.send_message(json.dumps({"type": "subscribe", "topics": topics}))
        seen = await watcher.receive_until("subscribed")
        assert seen[0] == {"type": "refused", "topic": topics[1], "error": f"no job {THEIRS}"}
        assert seen[-1]["topics"] == [topics[0], "jobs"]
        await side.daemon.report(progress(THEIRS, 9), progress(OURS, 9))
        seen += await watcher.receive_until("progress")
    assert {message.get("job_id", OURS) for message in seen} == {OURS}


async def test_a_key_that_ends_closes_its_connections(side: Side, an_hour_later: Callable[[], None]) -> None:
    daemon, file = side.daemon, side.daemon.settings.auth.keys_file
    other, brief = bearer(keys.add(file, "other", "read")), bearer(keys.add(file, "brief", "read", expires=3600))
    daemon.daemon.authenticator.load()
    async with (
        daemon.watch("/ws/jobs", other) as stays,
        daemon.watch("/ws/jobs", side.headers) as revoked,
        daemon.watch("/ws/jobs", brief) as expires,
        Peer(await daemon.connect()) as upload,
        Peer(await daemon.connect()) as events,
    ):
        await events.send(request("/api/events", side.headers))
        assert (await events.receive()).startswith(b"HTTP/1.1 200 ")
        form = {"Content-Type": "multipart/form-data; boundary=part", "Content-Length": "1000"}
        await upload.send(request("/api/convert", {**side.headers, **form}, method="POST"))
        await eventually(lambda: len(daemon.daemon.authenticator._open) == 5)
        keys.revoke(file, "scan")
        assert (await revoked.closed())[0] == 4500
        await upload.rest()
        await events.rest()
        an_hour_later()
        assert (await expires.closed())[0] == 4500
        await daemon.report(progress(OURS, 50))
        while (await stays.receive())["data"].get("current_step") != 50:
            pass
    assert (await side.client.get("/api/jobs")).status_code == 401


async def test_a_key_revoked_during_authentication_ends_at_once(side: Side, tmp_path: Path) -> None:
    authenticator, ended = side.daemon.daemon.authenticator, []
    who = authenticator.authenticate([(b"authorization", side.headers["Authorization"].encode())], None)
    with authenticator.revocable(who, lambda: ended.append("before")):
        pass
    keys.revoke(tmp_path / "state/keys.json", "scan")
    authenticator.load()
    with authenticator.revocable(who, lambda: ended.append("after")):
        pass
    assert ended == ["after"]
