"""A base path, whether or not the proxy removes it."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.cli.text import result_url
from progressd.client.watcher import watch
from progressd.config.load import load
from progressd.core.errors import SettingsError
from progressd.core.messages import Completed
from progressd.net.request import BasePath
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import FORM_TYPE, client_of, file_part, form, post_form
from support.peer import Peer, upgrade
from support.samples import ID
from support.submitting import COPY, PDF, ended, python
from trio_websocket import ConnectionRejected

BELOW = "/progress"


@pytest.fixture
async def below(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    pipelines = {"pdf": python(COPY, result=True)}
    server = {"port": 0, "allowed_hosts": ("daemon",), "base_path": f"{BELOW}/"}
    async with running_daemon(tmp_path, pipelines=pipelines, server=server) as daemon:
        yield daemon


@pytest.fixture
async def client(below: RunningDaemon) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(below) as client:
        yield client


async def converted(daemon: RunningDaemon, client: httpx.AsyncClient) -> str:
    """Return a job with a result."""
    answer = await post_form(client, file_part())
    assert answer.status_code == 202, answer.text
    job = await ended(daemon, answer.json()["job_id"])
    assert job.status == "completed", job.error
    return job.id


async def test_everything_works_with_and_without_the_prefix(below: RunningDaemon, client: httpx.AsyncClient) -> None:
    for base in [BELOW, ""]:
        for path in [
            "/",
            "/static/main.js",
            "/api/docs",
            "/api/health",
            "/api/jobs",
            f"/api/jobs/{ID}",
            "/api/jobs?limit=1",
        ]:
            await below.report(registered(ID))
            assert (await client.get(base + path)).status_code == 200
            assert (await client.get(f"{base}/nothing")).status_code == 404


async def test_another_prefix_returns_404(client: httpx.AsyncClient) -> None:
    for path in ["/progressive/api/health", "/progress2", "/other/api/health", f"{BELOW}{BELOW}/"]:
        assert (await client.get(path)).status_code == 404


async def test_the_prefix_without_slash_redirects(client: httpx.AsyncClient) -> None:
    for method in ["GET", "HEAD", "POST"]:
        answer = await client.request(method, BELOW, content=b"x" * 100_000 if method == "POST" else None)
        assert (answer.status_code, answer.headers["Location"]) == (308, f"{BELOW}/")
        assert (await client.request(method, f"{BELOW}?x=1&y=?")).headers["Location"] == f"{BELOW}/?x=1&y=?"
        assert (await client.get(f"{BELOW}/")).headers["Content-Type"].startswith("text/html")


async def test_result_urls_have_the_prefix(below: RunningDaemon, client: httpx.AsyncClient) -> None:
    job_id = await converted(below, client)
    url = f"{BELOW}/api/jobs/{job_id}/download"
    for read in (f"/api/jobs/{job_id}", f"/api/jobs/{job_id}?since=x", f"{BELOW}/api/jobs/{job_id}"):
        assert (await client.get(read)).json()["output_path"] == url
    assert (await client.get("/api/jobs/history")).json()["jobs"][0]["output_path"] == url
    async with client.stream("GET", f"{BELOW}/api/jobs/{job_id}/events") as events:
        assert f'"download_url":"{url}"' in (await events.aread()).decode()
    async with watch(f"{below.url}{BELOW}", job_id) as messages:
        [end] = [message async for message in messages if isinstance(message, Completed)]
    assert (end.data.output_path, end.data.download_url) == (url, url)
    assert (await client.get(url)).content == PDF
    assert (await client.get(result_url(url, f"{below.url}{BELOW}"))).content == PDF
    assert (await client.get("/api/openapi.json")).json()["servers"] == [{"url": f"{BELOW}/"}]


async def test_result_urls_of_batches_have_the_prefix(below: RunningDaemon, client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{BELOW}/api/batch", content=form(file_part(name="files")), headers=FORM_TYPE)
    batch = f"{BELOW}/api/batch/{answer.json()['batch_id']}"
    [job] = (await client.get(f"{batch}/jobs")).json()["jobs"]
    await ended(below, job["job_id"])
    [job] = (await client.get(f"{batch}/jobs")).json()["jobs"]
    assert job["download_url"] == f"{BELOW}/api/jobs/{job['job_id']}/download"


@pytest.mark.parametrize("kept", ["", "/of/old"])
async def test_result_urls_have_the_current_prefix(tmp_path: Path, kept: str) -> None:
    """Show a job whose stored URL has the prefix `kept`."""
    pipelines = {"pdf": python(COPY, result=True)}
    given: dict[str, Any] = {"pipelines": pipelines, "server": {"port": 0, "base_path": "/before"}}
    async with running_daemon(tmp_path, **given) as daemon, client_of(daemon) as client:
        job_id = await converted(daemon, client)
        tag = (await client.get(f"/api/jobs/{job_id}")).headers["ETag"]
        path = daemon.settings.state_dir / "progressd.db"
    own = f"/api/jobs/{job_id}/download"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table in ("jobs", "changes"):
            assert db.execute(f"SELECT count(*) FROM {table} WHERE body LIKE ?", (f'%"{own}"%',)).fetchone() == (1,)
            db.execute(f"UPDATE {table} SET body = replace(body, ?, ?)", (f'"{own}', f'"{kept}{own}'))
    given["server"]["base_path"] = BELOW
    async with running_daemon(tmp_path, **given) as daemon, client_of(daemon) as client:
        answer = await client.get(f"/api/jobs/{job_id}", headers={"If-None-Match": tag})
        assert answer.json()["output_path"] == BELOW + own
        [job] = (await client.get("/api/jobs")).json()["jobs"]
        assert job["output_path"] == BELOW + own
        async with watch(daemon.url, job_id) as messages:
            [end] = [message async for message in messages if isinstance(message, Completed)]
        assert (end.data.output_path, end.data.download_url) == (BELOW + own, BELOW + own)


async def test_websockets_open_below_the_prefix(below: RunningDaemon) -> None:
    await below.report(registered(ID), progress(ID, 1), completed(ID))
    for base in [BELOW, ""]:
        async with Peer(await below.connect()) as peer:
            await peer.open(f"{base}/ws/jobs/{ID}?types=completed")
            assert await peer.close_code() == 1000
        async with Peer(await below.connect()) as peer:
            for path in ("/api/health", f"{BELOW}/api/health", f"{BELOW}/ws/jobs"):
                assert (await peer.ask(path)).status in (200, 426)
            head = upgrade(f"{base}/ws/jobs/{ID}")
            for piece in (head[:9], head[9:20]):  # not recognizable yet
                await peer.send(piece)
            await peer.open_with(head[20:])
            assert await peer.close_code() == 1000
        with pytest.raises(ConnectionRejected) as rejected:
            async with below.watch(f"{base}/ws/nothing"):
                pass
        assert rejected.value.status_code == 404


@given(st.binary(max_size=30))
def test_other_targets_are_unchanged(target: bytes) -> None:
    assert BasePath().strip(target) is target
    base = BasePath("/a/b/")
    assert base.strip(b"/a/b/" + target) == b"/" + target
    assert base.strip_head(b"GET /a/b/" + target) == b"GET /" + target
    if not target.startswith(b"/a/b/"):
        assert base.strip(target) is target


@pytest.mark.parametrize("path", ["progress", "/api", "/ws/", "/static/x", "/a//b", "/../x", "/a b", "//x", "/a?b"])
def test_an_invalid_prefix_is_rejected(path: str) -> None:
    with pytest.raises(SettingsError, match=r"^server\.base_path = .* expected a path such as"):
        load(None, {"PROGRESSD_SERVER_BASE_PATH": path}, {})


@pytest.mark.parametrize("path", ["/", "/progress", "/progress/", "/a/b-c/d.e/", "/apiary"])
def test_valid_prefixes_are_accepted(path: str) -> None:
    assert load(None, {"PROGRESSD_SERVER_BASE_PATH": path}, {})[0].server.base_path == path
