"""The pings of Healthchecks: the jobs that they make, and their keys."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.http.routes.ping import MAX_BODY, masked
from structlog.testing import capture_logs
from support import keys
from support.daemon import RunningDaemon, running_daemon
from support.http_client import client_of
from support.serving import PATIENCE, served_daemon


async def ping(client: httpx.AsyncClient, path: str, body: bytes | None = None, **query: str) -> httpx.Response:
    """Send a ping, with a body by POST, and check the response."""
    method = "GET" if body is None else "POST"
    response = await client.request(method, f"/ping/key/{path}", content=body, params=query)
    assert (response.status_code, response.text) == (200, "OK"), response.text
    return response


async def jobs(client: httpx.AsyncClient, kind: str) -> list[dict[str, Any]]:
    """Return the jobs of a kind, oldest first."""
    found: list[dict[str, Any]] = (await client.get("/api/jobs", params={"kind": kind})).json()["jobs"]
    return found[::-1]


def states(found: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(job["status"], job.get("error")) for job in found]


async def test_pings_start_and_complete_a_job(client: httpx.AsyncClient) -> None:
    await ping(client, "backup/start", create="1")
    [job] = await jobs(client, "backup")
    assert job["status"] == "processing"
    response = await ping(client, "backup")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Ping-Body-Limit"] == "100000"
    [ended] = await jobs(client, "backup")
    assert (ended["id"], ended["status"]) == (job["id"], "completed")


@pytest.mark.parametrize(
    ("signal", "body", "status", "error"),
    [
        ("", None, "completed", None),
        ("/0", None, "completed", None),
        ("/37", None, "failed", "failed with exit status 37"),
        ("/255", b"", "failed", "failed with exit status 255"),
        ("/fail", None, "failed", "failed"),
        ("/fail", b"one\nno \x1b paper\n \n", "failed", "no   paper"),
        ("/1", b"\xff" * 2000, "failed", "\N{REPLACEMENT CHARACTER}" * 999 + "…"),
    ],
)
async def test_a_ping_without_a_start_is_a_whole_job(
    signal: str, body: bytes | None, status: str, error: str | None, client: httpx.AsyncClient
) -> None:
    await ping(client, f"backup{signal}", body)
    assert states(await jobs(client, "backup")) == [(status, error)]


async def test_head_is_a_ping(client: httpx.AsyncClient) -> None:
    assert (await client.head("/ping/key/backup")).status_code == 200
    assert states(await jobs(client, "backup")) == [("completed", None)]


async def test_runs_overlap_by_their_ids(client: httpx.AsyncClient) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4()).upper()
    await ping(client, "backup/start", rid=one)
    await ping(client, "backup/start", rid=two)
    await ping(client, "backup/start", rid=two)  # a repeated request
    await ping(client, "backup/start")
    await ping(client, "backup/7", rid=one)
    await ping(client, "backup/7", rid=one)
    assert [status for status, _ in states(await jobs(client, "backup"))] == ["failed", "processing", "processing"]
    await ping(client, "backup")
    assert [status for status, _ in states(await jobs(client, "backup"))] == ["failed", "processing", "completed"]
    await ping(client, "backup", rid=two)
    assert [job["labels"].get("rid") for job in await jobs(client, "backup")] == [one, two.lower(), None]
    late = await client.get("/ping/key/backup", params={"rid": one})
    assert late.status_code == 409
    assert "is already failed" in late.json()["error"]


async def test_a_second_start_ends_the_first_run(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await ping(client, "backup/start")
    assert states(await jobs(client, "backup")) == [
        ("failed", "the next run began before this one ended"),
        ("processing", None),
    ]


async def test_pings_end_no_jobs_of_other_producers_or_keys(client: httpx.AsyncClient) -> None:
    other = (await client.post("/api/jobs", json={"kind": "backup"})).json()["id"]
    await client.post(
        f"/api/jobs/{other}/events",
        json={"type": "progress", "data": {"percent": 1, "current_step": 0, "total_steps": 0}},
    )
    assert (await client.get("/ping/secret/backup/start")).text == "OK"
    await ping(client, "backup")
    assert [status for status, _ in states(await jobs(client, "backup"))] == ["processing", "processing", "completed"]


async def test_a_log_changes_nothing(client: httpx.AsyncClient) -> None:
    await ping(client, "backup/start")
    await ping(client, "backup/log", b"so far so good")
    assert states(await jobs(client, "backup")) == [("processing", None)]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ping/key/a.b", 400),
        ("/ping/key/backup/256", 400),
        ("/ping/key/backup/-1", 400),
        ("/ping/key/backup/07", 400),
        ("/ping/key/backup/begin", 400),
        ("/ping/key/backup?rid=1", 400),
        ("/ping/key/backup?create=2", 400),
        ("/ping/key/backup?colour=red", 400),
        ("/ping/key", 404),
        ("/ping/key/backup/start/now", 404),
    ],
)
async def test_wrong_pings_are_rejected(path: str, status: int, client: httpx.AsyncClient) -> None:
    assert (await client.get(path)).status_code == status
    assert await jobs(client, "backup") == []


async def test_a_body_that_is_too_large_is_rejected(client: httpx.AsyncClient) -> None:
    assert (await client.post("/ping/key/backup", content=b"x" * (MAX_BODY + 1))).status_code == 413


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}])
async def test_pages_of_other_sites_may_not_send_pings(headers: Mapping[str, str], client: httpx.AsyncClient) -> None:
    assert (await client.get("/ping/key/backup", headers=headers)).status_code == 403
    assert await jobs(client, "backup") == []


async def test_a_run_ends_after_a_restart(tmp_path: Path) -> None:
    rid = str(uuid.uuid4())
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        await ping(client, "backup/start", rid=rid)
        await ping(client, "check/start")
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        await ping(client, "backup", rid=rid)
        await ping(client, "check")
        assert states(await jobs(client, "backup")) == states(await jobs(client, "check")) == [("completed", None)]


async def test_a_key_in_the_path_is_not_logged(tmp_path: Path) -> None:
    counted = {"exempt_addresses": ()}
    async with (
        running_daemon(tmp_path, auth={"required": True}, limits=counted) as daemon,
        client_of(daemon) as client,
    ):
        file = daemon.settings.auth.keys_file
        secret, read = keys.add(file, "cron", "write"), keys.add(file, "page", "read")
        bound = keys.add(file, "bound", "write", team="scan")
        daemon.daemon.authenticator.load()
        with capture_logs() as logs:
            assert (await client.get(f"/ping/{secret}/backup/start")).text == "OK"
            assert (await client.get(f"/ping/{bound}/backup")).text == "OK"
            assert (await client.get(f"/ping/{read}/backup")).status_code == 403
            assert (await client.get("/ping/wrong/backup", headers=keys.bearer(secret))).status_code == 401
            guesses = [(await client.get(f"/ping/wrong{number}/backup")).status_code for number in range(20)]
        assert 429 in guesses
        found = (await client.get("/api/jobs", headers=keys.bearer(read))).json()["jobs"]
        assert [(job["labels"], job["status"]) for job in found] == [
            ({"ping": "bound", "team": "scan"}, "completed"),
            ({"ping": "cron"}, "processing"),
        ]
    assert secret not in repr(logs)


async def test_an_error_is_logged_without_the_key(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("no")

    daemon.daemon.ingest.submit = fail  # type: ignore[method-assign, assignment]
    with capture_logs() as logs:
        assert (await client.get("/ping/hidden/backup")).status_code == 500
    assert [one["path"] for one in logs if one["event"] == "request failed"] == ["/ping/…/backup"]
    assert "hidden" not in repr([{**one, "exc_info": ""} for one in logs])


@given(st.text(alphabet="ab/-é", min_size=1, max_size=8).filter(lambda key: "/" not in key), st.text(max_size=5))
def test_no_key_is_shown(key: str, rest: str) -> None:
    assert masked(f"/ping/{key}/{rest}") == f"/ping/…/{rest}"
    assert masked("/api/jobs") == "/api/jobs"


BORGMATIC = """
repositories:
  - path: {directory}/repository
source_directories:
  - {source}
encryption_passphrase: secret
healthchecks:
  ping_url: {url}/ping/key/borg
"""


@pytest.mark.tools
def test_borgmatic_reports_its_runs(tmp_path: Path) -> None:
    source, config = tmp_path / "source", tmp_path / "borgmatic.yaml"
    source.mkdir()
    (source / "file").write_text("text")
    with served_daemon(tmp_path / "state") as daemon:
        environ = {**os.environ, "HOME": str(tmp_path), "BORG_BASE_DIR": str(tmp_path)}

        def borgmatic(*arguments: str, given: Path = source) -> subprocess.CompletedProcess[str]:
            config.write_text(BORGMATIC.format(directory=tmp_path, source=given, url=daemon.url))
            command = ["borgmatic", "--config", str(config), *arguments]
            return subprocess.run(
                command, env=environ, capture_output=True, text=True, timeout=4 * PATIENCE, check=False
            )

        made = borgmatic("repo-create", "--encryption", "repokey-blake2")
        assert made.returncode == 0, made.stderr
        done = borgmatic("create")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / "repository")
        assert borgmatic("create").returncode != 0
        failed, completed = daemon.request("GET", "/api/jobs?kind=borg").json()["jobs"]
    assert (completed["status"], completed["labels"].keys() >= {"ping"}) == ("completed", True)
    assert failed["status"] == "failed"
    assert "borg" in failed["error"].lower()
