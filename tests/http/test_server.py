"""HTTP connections: when they are kept and closed, and that no client delays the stop."""

import contextlib
import gc
import math
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.app import CLOSE_TIMEOUT
from progressd.core.messages import JobStatus
from progressd.http.server.hypercorn import KEEP_ALIVE_TIMEOUT
from progressd.http.server.protocol import HALF_CLOSE_TIMEOUT, POLL_INTERVAL
from progressd.net.connection import LINGER_TIMEOUT
from progressd.store.sqlite import SQLiteStore
from support.daemon import PATIENCE, RunningDaemon, progress, registered, running_daemon
from support.http_client import FORM_TYPE, file_part, form, get
from support.peer import Peer, request
from support.samples import ID, job_id
from support.submitting import PDF, ended, python, run, shell
from support.waiting import eventually, jumping, open_files
from trio.testing import MockClock, wait_all_tasks_blocked

HEALTH = b'{"status":"live"}'
SIZE = 24 << 20  # bytes, more than the buffers of a connection
LARGE = python(f"import sys; open(sys.argv[2], 'wb').truncate({SIZE})", result=True)


async def answer(stream: trio.SocketStream, body: bytes = HEALTH) -> bytes:
    """Read a response up to the end of its known body."""
    received = b""
    with trio.fail_after(PATIENCE):
        while not received.endswith(body):
            chunk = await stream.receive_some()
            assert chunk, received
            received += chunk
    return received


async def is_closed(stream: trio.SocketStream) -> None:
    """Check that the daemon closes the connection, and that nothing more arrives."""
    with trio.fail_after(PATIENCE):
        assert await stream.receive_some() == b""


async def test_an_idle_connection_is_closed_in_time(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    async with await daemon.connect() as stream:
        for _ in range(3):
            await stream.send_all(get("/api/health/live"))
            await answer(stream)
            await wait_all_tasks_blocked()
            slow_clock.jump(0.8 * KEEP_ALIVE_TIMEOUT)
        slow_clock.jump(0.2 * KEEP_ALIVE_TIMEOUT)
        await is_closed(stream)


async def test_an_incomplete_head_on_a_used_connection_times_out(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    for begun in [b"GET /api/health/live HTTP/1.1\r\nHost:", b"G", b"GET /ws/jobs HTTP/1.1\r\n"]:
        async with await daemon.connect() as stream:
            await stream.send_all(get("/api/health/live"))
            await answer(stream)
            await stream.send_all(begun)
            for _ in range(10):  # less than KEEP_ALIVE_TIMEOUT in all
                await wait_all_tasks_blocked(0.01)
                slow_clock.jump(0.2 * daemon.settings.limits.handshake_timeout)
            await is_closed(stream)


async def test_a_client_may_request_the_close(daemon: RunningDaemon) -> None:
    for request_ in [get("/api/health/live", "Connection: close"), b"GET /api/health/live HTTP/1.0\r\n\r\n"]:
        async with await daemon.connect() as stream:
            await stream.send_all(request_)
            await answer(stream)
            await is_closed(stream)


WANTED = "Content-Type: " + FORM_TYPE["Content-Type"]


async def test_an_unwanted_body_does_not_delay_the_response(daemon: RunningDaemon) -> None:
    for head, status in [
        ("POST /nope HTTP/1.1", 404),
        ("GET /api/health/live HTTP/1.1", 200),
        ("POST /api/jobs/x/retry HTTP/1.1", 400),
        ("POST /api/jobs HTTP/1.1", 413),
        ("POST /api/events HTTP/1.1", 413),
        ("POST /api/convert?pipeline=x HTTP/1.1\r\n" + WANTED, 400),
        ("POST /api/convert HTTP/1.1\r\n" + WANTED, 400),
    ]:
        received = b""
        async with await daemon.connect() as stream, trio.open_nursery() as nursery:

            async def send(head: str) -> None:
                await stream.send_all(f"{head}\r\nHost: progressd\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
                forms = file_part() * 1000  # a form may have one file
                while True:
                    await stream.send_all(b"%x\r\n%b\r\n" % (len(forms), forms))

            async def send_until_cut_off(head: str) -> None:
                try:
                    await send(head)
                except trio.BrokenResourceError:
                    return

            nursery.start_soon(send_until_cut_off, head)
            with trio.fail_after(PATIENCE):
                while b"\r\n\r\n" not in received:
                    chunk = await stream.receive_some()
                    assert chunk, "closed without an answer"
                    received += chunk
            nursery.cancel_scope.cancel()
        assert received.startswith(b"HTTP/1.1 %d " % status)
    await daemon.stop()


UNFINISHED = {"Transfer-Encoding": "chunked"}


async def test_an_early_response_closes_the_connection(daemon: RunningDaemon) -> None:
    for target, method, status in [
        ("/nope", "POST", 404),
        ("/api/health", "POST", 405),
        ("/api/jobs/x/retry", "POST", 400),
        ("/api/health/live", "GET", 200),
        ("/api/jobs", "POST", 403),  # by a middleware
    ]:
        headers = {"Origin": "http://elsewhere.example"} if status == 403 else {}
        async with Peer(await daemon.connect()) as peer:
            await peer.send(request(target, {**UNFINISHED, **headers}, method=method) + b"1\r\nx\r\n")
            answered = await peer.response()
            assert (answered.status, answered.headers["connection"]) == (status, "close")
            assert await peer.rest() == b""


async def test_a_rejected_whole_request_keeps_the_connection(daemon: RunningDaemon) -> None:
    for body in [b"", b"x", b"x" * 2000]:
        for target, origin in [("/nope", ""), ("/api/jobs", "http://elsewhere.example")]:
            headers = {"Origin": origin, "Content-Length": str(len(body))}
            async with Peer(await daemon.connect()) as peer:
                for _ in range(20):
                    await peer.send(request(target, headers, method="POST") + body)
                    answered = await peer.response()
                    assert answered.status in (403, 404)
                    assert "connection" not in answered.headers


@asynccontextmanager
async def stuck_download(directory: Path, **given: Any) -> AsyncGenerator[tuple[RunningDaemon, trio.SocketStream]]:
    """Yield a daemon and a client that has requested a large file and does not read it."""
    async with running_daemon(directory, pipelines={"pdf": LARGE}, **given) as daemon:
        done = await run(daemon, "pdf")
        async with await daemon.connect(receive_buffer=4096) as stream:
            await stream.send_all(get(f"/api/jobs/{done.id}/download"))
            result = str(daemon.daemon.files.output(done.id))
            await eventually(lambda: result in open_files())
            yield daemon, stream


async def test_an_unread_download_does_not_delay_the_stop(tmp_path: Path) -> None:
    async with stuck_download(tmp_path, shutdown={"drain_timeout": 0.3}, close_timeout=0.3) as (daemon, _):
        await daemon.stop()


STALL = 60.0  # seconds, by default


async def test_a_client_that_does_not_read_times_out(slow_clock: MockClock, tmp_path: Path) -> None:
    async with stuck_download(tmp_path) as (daemon, stream):
        jobs = str(daemon.settings.state_dir / "jobs")
        await jumping(slow_clock, STALL / 4, lambda: jobs not in " ".join(open_files()))
        with trio.fail_after(PATIENCE):
            read = await read_to_the_end(stream)
        assert read < SIZE


async def test_a_client_that_only_sends_times_out(slow_clock: MockClock, tmp_path: Path) -> None:
    async with stuck_download(tmp_path) as (daemon, _), await daemon.connect() as stream:
        [result] = [name for name in open_files() if name.startswith(str(daemon.settings.state_dir / "jobs"))]
        await stream.send_all(get(f"/api/jobs/{Path(result).parent.name}/download", "Transfer-Encoding: chunked"))

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"1\r\nx\r\n")
                    await trio.sleep(STALL / 20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await eventually(lambda: daemon.daemon.connection_log.open == 2)
            await jumping(slow_clock, STALL / 20, lambda: daemon.daemon.connection_log.open == 0)
            nursery.cancel_scope.cancel()


open_long_pages = partial(SQLiteStore.open, page_bytes=1 << 30)
# Jobs whose list does not fit into the kernel's buffers.
LONG_PAGE = [registered(job_id(number), options={"text": "x" * 60_000}) for number in range(1, 151)]


async def unread(daemon: RunningDaemon, held: int) -> trio.SocketStream:
    """Connect a client that requests that list and does not read it, until more than `held` bytes wait."""
    stream = await daemon.connect(receive_buffer=4096)
    await stream.send_all(get("/api/jobs?limit=1000"))
    await eventually(lambda: daemon.daemon.http.budget.used > held)
    return stream


async def test_unread_responses_are_limited_in_total(tmp_path: Path) -> None:
    limits = {"send_buffer_bytes_total": 20_000_000}
    async with running_daemon(tmp_path, open_store=open_long_pages, limits=limits) as daemon:
        await daemon.report(*LONG_PAGE)
        budget, connection_log = daemon.daemon.http.budget, daemon.daemon.connection_log
        async with await unread(daemon, 0), await unread(daemon, 10_000_000):
            assert connection_log.open == 2
            async with await unread(daemon, 0):
                await eventually(lambda: connection_log.counts["http", "not read"] == 1)
                assert 9_000_000 < budget.used < 20_000_000
                async with await daemon.connect() as reading:
                    await reading.send_all(get("/api/jobs?limit=1000", "Connection: close"))
                    with trio.fail_after(PATIENCE):
                        assert await read_to_the_end(reading) > 9_000_000


async def test_an_unread_response_is_kept_once(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, open_store=open_long_pages) as daemon:
        await daemon.report(*LONG_PAGE)
        tracemalloc.start()
        try:
            async with await unread(daemon, 0):
                await wait_all_tasks_blocked()
                gc.collect()
                assert 9_000_000 < tracemalloc.get_traced_memory()[0] < 13_000_000
        finally:
            tracemalloc.stop()


async def read_to_the_end(stream: trio.SocketStream) -> int:
    """Return how many bytes arrive until the connection is closed or reset."""
    read = 0
    with contextlib.suppress(trio.BrokenResourceError):
        while chunk := await stream.receive_some(1 << 20):
            read += len(chunk)
    return read


async def test_a_slow_download_does_not_time_out(slow_clock: MockClock, tmp_path: Path) -> None:
    async with stuck_download(tmp_path) as (daemon, stream):
        read = 0
        for tick in range(1, 11):
            await wait_all_tasks_blocked()
            slow_clock.jump(0.2 * STALL)
            with trio.fail_after(PATIENCE):
                while read < tick * 200_000:
                    read += len(await stream.receive_some(1 << 20))
        assert str(daemon.settings.state_dir / "jobs") in " ".join(open_files())


async def read_some(stream: trio.SocketStream, size: int) -> None:
    """Read at least `size` bytes."""
    with trio.fail_after(PATIENCE):
        while size > 0:
            chunk = await stream.receive_some(65536)
            assert chunk, "closed too soon"
            size -= len(chunk)


async def test_the_stop_does_not_wait_for_idle_clients(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).status == 200
        began = trio.current_time()
        await daemon.stop()
        assert trio.current_time() - began < LINGER_TIMEOUT
        assert await peer.rest() == b""


PATHS = {"fast read": f"/api/jobs/{ID}", "application": "/api/openapi.json", "not found": "/nothing"}


@pytest.mark.parametrize("used", [False, True], ids=["new", "kept alive"])
@pytest.mark.parametrize("answered", PATHS)
async def test_a_request_during_the_stop_gets_the_last_response(
    daemon: RunningDaemon, answered: str, used: bool
) -> None:
    await daemon.report(registered(ID))
    async with Peer(await daemon.connect()) as peer:
        if used:
            assert "connection" not in (await peer.ask("/api/health")).headers
        await daemon.daemon.http.drain()
        response = await peer.ask(PATHS[answered])
        assert response.status in (200, 404)
        assert response.headers["connection"] == "close"
        assert await peer.rest() == b""


@pytest.fixture
async def patient_daemon(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    """A daemon that waits for its clients at the end."""
    async with running_daemon(tmp_path, close_timeout=math.inf) as daemon:
        yield daemon


@pytest.mark.parametrize("answered", PATHS)
async def test_busy_clients_get_every_response_during_a_stop(patient_daemon: RunningDaemon, answered: str) -> None:
    daemon = patient_daemon
    await daemon.report(registered(ID))
    answers = 0

    async def ask_until_closed() -> None:
        nonlocal answers
        async with Peer(await daemon.connect()) as peer:
            headers: dict[str, str] = {}
            while headers.get("connection") != "close":
                headers = (await peer.ask(PATHS[answered])).headers
                answers += 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask_until_closed)
        await eventually(lambda: answers > 50)
        daemon.kill()
    with trio.fail_after(PATIENCE):
        await daemon.stopped.wait()


async def test_the_stop_answers_a_request_behind_a_stream(
    daemon: RunningDaemon,
) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(request("/api/events") + request("/api/health/live"))
        await eventually(lambda: len(daemon.daemon.streams) == 1)
        daemon.kill()
        assert (await peer.response()).headers["content-type"] == "text/event-stream"
        last = await peer.response()
        assert (last.body, last.headers["connection"]) == (HEALTH, "close")


async def connect_forever(daemon: RunningDaemon) -> None:
    host, port = daemon.address.split(":")
    while True:
        async with await trio.open_tcp_stream(host, int(port)):
            await wait_all_tasks_blocked()


async def test_a_stopping_daemon_rejects_new_connections(patient_daemon: RunningDaemon) -> None:
    daemon = patient_daemon
    async with daemon.watch() as watcher:
        daemon.kill()
        await watcher.receive_until("server_shutdown")
        with pytest.raises(OSError, match="failed"), trio.fail_after(PATIENCE):
            await connect_forever(daemon)


LONGER = 2 * CLOSE_TIMEOUT


async def test_a_download_that_starts_during_the_stop_can_end(slow_clock: MockClock, tmp_path: Path) -> None:
    async with stuck_download(tmp_path) as (daemon, first), await daemon.connect(receive_buffer=4096) as second:
        daemon.kill()
        await eventually(lambda: not daemon.daemon.services.ready)
        [directory] = (tmp_path / "state/jobs").iterdir()
        await second.send_all(get(f"/api/jobs/{directory.name}/download"))
        await eventually(lambda: len(daemon.daemon.services.transfers.ends) == 2)
        await trio.aclose_forcefully(first)
        await eventually(lambda: len(daemon.daemon.services.transfers.ends) == 1)
        slow_clock.jump(LONGER)
        await read_some(second, 20 << 20)


async def test_a_download_is_cut_off_after_the_drain_timeout(slow_clock: MockClock, tmp_path: Path) -> None:
    async with stuck_download(tmp_path) as (daemon, stream):
        daemon.kill()
        await eventually(lambda: not daemon.daemon.services.ready)
        await jumping(slow_clock, CLOSE_TIMEOUT, daemon.stopped.is_set)
        with trio.fail_after(PATIENCE):
            assert await read_to_the_end(stream) < SIZE


async def test_an_upload_can_end_during_the_stop(slow_clock: MockClock, tmp_path: Path) -> None:
    body = form(file_part(PDF.ljust(200_000)))
    head = f"POST /api/convert HTTP/1.1\r\nHost: progressd\r\nContent-Length: {len(body)}\r\n{WANTED}\r\n\r\n".encode()
    async with running_daemon(tmp_path, shutdown={"wait_for_jobs": False}) as daemon:
        uploads = daemon.settings.state_dir / "uploads"
        async with await daemon.connect() as stream:
            await stream.send_all(head + body[:100_000])
            await eventually(lambda: any(path.stat().st_size > 50_000 for path in uploads.iterdir()))
            daemon.kill()
            await eventually(lambda: not daemon.daemon.services.ready)
            slow_clock.jump(LONGER)
            await stream.send_all(body[100_000:])
            assert (await answer(stream, b"}")).startswith(b"HTTP/1.1 202 ")
            await is_closed(stream)
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()
        [job] = daemon.daemon.registry.unfinished.values()
        assert job.status is JobStatus.QUEUED
    async with running_daemon(tmp_path, pipelines={"pdf": shell("true")}) as daemon:
        assert (await ended(daemon, job.id)).status is JobStatus.COMPLETED


async def test_a_half_closed_client_gets_its_response(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    for head, body, status in [
        (request("/api/jobs"), b"", 200),
        (request(f"/api/jobs/{ID}"), b"", 200),
        (request("/api/jobs", {"Content-Length": "18"}, method="POST"), b'{"kind": "backup"}', 201),
        (
            request("/api/events", {"Content-Length": "3", "Content-Type": "application/x-ndjson"}, method="POST"),
            b"no\n",
            200,
        ),
        (request("/api/events", {"Content-Length": "999"}, method="POST"), b"{", 400),
    ]:
        async with Peer(await daemon.connect()) as peer:
            await peer.send(head + body)
            await peer.stream.send_eof()
            assert (await peer.response()).status == status
            assert await peer.rest() == b""


async def test_a_half_closed_client_gets_a_whole_download(slow_clock: MockClock, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"pdf": LARGE}) as daemon:
        done = await run(daemon, "pdf")
        async with await daemon.connect() as stream:
            await stream.send_all(get(f"/api/jobs/{done.id}/download"))
            await stream.send_eof()
            with trio.fail_after(PATIENCE):
                assert await stream.receive_some(12) == b"HTTP/1.1 200"
                await wait_all_tasks_blocked()
                slow_clock.jump(2 * HALF_CLOSE_TIMEOUT)  # longer than a response may take to begin
                assert await read_to_the_end(stream) > SIZE
        await eventually(lambda: daemon.daemon.connection_log.open == 0)


LONG = b"x" * 3_000_000  # more than all buffers
KEPT_WAITING = {
    "events": (request("/api/events"), b""),
    "a long poll": (request(f"/api/jobs/{ID}?since=CURSOR&wait=60"), b""),
    "events, and more behind them": (request("/api/events"), b"more"),
    "events, and a request behind them": (request("/api/events"), request("/api/health")),
    "events, and a body": (request("/api/events", {"Content-Length": "3000000"}), LONG),
    "a long poll, and more behind it": (request(f"/api/jobs/{ID}?since=CURSOR&wait=60"), b"more"),
    "a long poll, and a body": (
        request(f"/api/jobs/{ID}?since=CURSOR&wait=60", {"Content-Length": "3000000"}),
        LONG,
    ),
    "a body that is waited for": (request("/api/jobs", {"Content-Length": "38"}, method="POST"), b'{"kind"'),
}


async def test_a_waiting_client_that_leaves_is_noticed(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    for how in ["close", "half", "reset"]:
        for what in KEPT_WAITING:
            async with Peer(await daemon.connect()) as peer:
                cursor = (await peer.ask(f"/api/jobs/{ID}")).json["cursor"]
            await eventually(lambda: daemon.daemon.connection_log.open == 0)
            head, behind = KEPT_WAITING[what]
            peer = Peer(await daemon.connect())
            await peer.send(head.replace(b"CURSOR", cursor.encode()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.stream.send_all, behind)
                await wait_all_tasks_blocked(0.05)  # the daemon has read what it takes
                nursery.cancel_scope.cancel()
            if how == "reset":
                await peer.reset()
            elif how == "close":
                await peer.stream.aclose()
            else:
                await peer.stream.send_eof()
            await jumping(slow_clock, POLL_INTERVAL, lambda: daemon.daemon.connection_log.open == 0)
            await peer.stream.aclose()
            async with Peer(await daemon.connect()) as other:
                assert (await other.ask("/api/health/live")).status == 200


@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_unread_responses_end_only_their_connection(tmp_path: Path, how: str) -> None:
    async with running_daemon(tmp_path, limits={"idle_timeout": 0.5}) as daemon, Peer(await daemon.connect()) as other:
        assert (await other.ask("/api/health/live")).status == 200
        async with Peer(await daemon.connect(receive_buffer=2048)) as peer:
            await peer.send(request("/api/openapi.json") * 40)
            assert (await other.ask("/api/health/live")).status == 200
            if how == "reset":
                await peer.reset()
            elif how == "close":
                await peer.stream.aclose()
            else:
                await peer.stream.send_eof()
            await eventually(lambda: daemon.daemon.connection_log.open <= 1)
        assert (await other.ask("/api/health/live")).status == 200
        assert not daemon.daemon.connection_log.counts["failed", "error"]
