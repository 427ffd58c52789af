"""Every error is JSON with one sentence, and shows no internals."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from progressd.core import errors
from progressd.core.errors import StoreFailed
from progressd.store.sqlite import SQLiteStore
from support.daemon import RunningDaemon, running_daemon
from support.http_client import client_of, error_of, exchange, get
from support.peer import Peer, request, upgrade
from support.samples import ID
from support.scarcity import no_descriptors_left

REST = Path(__file__).parents[2] / "docs/rest.md"
CODE_ROW = re.compile(r"^\| `(\w+)` \| ([45]\d\d) \|", re.MULTILINE)


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_the_documentation_lists_each_code() -> None:
    documented = {code: int(status) for code, status in CODE_ROW.findall(REST.read_text())}
    classes = [
        error for error in vars(errors).values() if isinstance(error, type) and error.__module__ == errors.__name__
    ]
    statuses = {error.code: error.status for error in classes} | {code: status for status, code in errors.CODES.items()}
    assert documented == statuses


async def test_unknown_paths_return_404(client: httpx.AsyncClient) -> None:
    for path in [
        "/nope",
        "/api",
        "/api/",
        "/api/nope",
        "/api/jobs/",
        f"/api/jobs/{ID}/nope",
        "/static/nope.js",
        "/favicon.ico",
    ]:
        response = await client.get(path)
        assert response.status_code == 404
        error_of(response)


async def test_a_wrong_method_returns_405_with_allow(client: httpx.AsyncClient) -> None:
    for method, path, allowed in [
        ("PUT", "/api/jobs", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("POST", f"/api/jobs/{ID}", {"GET", "HEAD", "OPTIONS", "DELETE"}),
        ("GET", f"/api/jobs/{ID}/retry", {"POST", "OPTIONS"}),
        ("POST", f"/api/jobs/{ID}/download", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/api/events", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("DELETE", "/static/main.js", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", "/api/jobs", {"GET", "HEAD", "OPTIONS", "POST"}),
    ]:
        response = await client.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["Allow"].split(", ")) == allowed
        error_of(response)


async def test_malformed_requests_get_json_errors(daemon: RunningDaemon) -> None:
    for request_, status in [
        (get("/api//health", "Connection: close"), 404),
        (get("/api/jobs/../health", "Connection: close"), 404),
        (get("http://progressd/api/nope", "Connection: close"), 404),
        (get("/api/jobs?limit=%00", "Connection: close"), 400),
        (b"GET /api/health HTTP/1.1\r\n\r\n", 400),
        (b"GET /api/health HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n", 400),
        (b"POST /api/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /api/jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /api/jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n", 400),
        (get("http://[", "Connection: close"), 400),
        (get("?limit=1"), 400),
        (b"POST http://[ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 400),
        (get("http://[") + get("/api/health"), 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ]:
        answer = await exchange(daemon, request_)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert b"application/json" in answer
        assert body_of(answer).startswith(b'{"error":"')


async def test_an_invalid_target_is_not_logged(daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    head = await exchange(daemon, get("http://[").replace(b"GET", b"HEAD"))
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body_of(head) == b""
    assert (await exchange(daemon, get("http://["))).count(b"HTTP/1.1 400 ") == 1
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


FOREIGN = "https://evil.example"


async def test_any_page_may_send_a_read(client: httpx.AsyncClient) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        assert (await client.request(method, "/api/jobs", headers={"Origin": FOREIGN})).status_code == 200


async def test_own_and_allowed_pages_may_write(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, server={"port": 0, "allowed_origins": (FOREIGN,)}) as daemon,
        client_of(daemon) as client,
    ):
        for origin in (daemon.url, FOREIGN):
            assert (await client.post("/api/jobs", headers={"Origin": origin})).status_code == 201
        assert (await client.post("/api/jobs", headers={"Origin": "https://other.example"})).status_code == 403


def broken(failure: Exception) -> Callable[[Path, str], SQLiteStore]:
    """Return the `open` of a store whose lists fail."""

    class BrokenStore(SQLiteStore):
        async def page(self, *what: Any) -> Any:
            raise failure

    return BrokenStore.open


async def test_an_internal_error_returns_500_without_details(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, open_store=broken(RuntimeError("/secret/path"))) as daemon,
        client_of(daemon) as client,
    ):
        for _ in range(2):
            response = await client.get("/api/jobs")
            assert response.status_code == 500
            assert error_of(response) == "internal error: see the daemon's log"
        assert (await client.get("/api/health")).status_code == 200


async def test_a_failing_store_returns_503(tmp_path: Path) -> None:
    failure = StoreFailed("the disk is full", retry_after=7)
    async with running_daemon(tmp_path, open_store=broken(failure)) as daemon, client_of(daemon) as client:
        response = await client.get("/api/jobs")
        assert response.status_code == 503
        assert response.json() == {"error": "the disk is full", "code": "unavailable", "retry_after": 7}
        assert response.headers["Retry-After"] == "7"


async def test_reads_work_without_descriptors(client: httpx.AsyncClient) -> None:
    await client.get("/nope")  # opens the connection
    for path in ["/api/jobs", "/api/jobs/history", "/api/stats/jobs", "/api/metrics", "/api/health"]:
        with no_descriptors_left():
            assert (await client.get(path)).status_code == 200


async def test_without_descriptors_statistics_return_503(client: httpx.AsyncClient) -> None:
    await client.get("/nope")
    with no_descriptors_left():
        for path in ["/api/stats", "/api/stats/system"] * 2:
            response = await client.get(path)
            assert response.status_code == 503
            assert error_of(response) == "the daemon cannot respond at the moment: Too many open files"
            assert "Retry-After" in response.headers
    assert (await client.get("/")).status_code == 200


async def test_options_lists_the_methods(client: httpx.AsyncClient) -> None:
    response = await client.options("/api/jobs")
    assert response.status_code == 200
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


async def test_one_empty_line_before_a_request_is_ignored(daemon: RunningDaemon) -> None:
    for target in ["/api/health/live", "/api/jobs"]:
        async with Peer(await daemon.connect()) as peer:
            await peer.send(b"\r\n" + request(target))
            assert (await peer.response()).status == 200
            assert (await peer.ask(target)).status == 200
        async with Peer(await daemon.connect()) as peer:
            await peer.open_with(b"\r\n" + upgrade())
