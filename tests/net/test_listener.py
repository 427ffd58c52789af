"""The one port: a failure ends one connection, and the daemon stops whatever its clients do."""

import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.app import serve
from progressd.auth.authenticator import Authenticator
from progressd.config.settings import Limits
from progressd.core.events import ProgressEvent, ReportedProgress
from progressd.core.pipeline import Pipeline
from progressd.net import listener as module
from progressd.net.connection import LINGER_TIMEOUT, Connection, SocketTransport
from progressd.net.connection_log import ConnectionLog
from progressd.net.listener import Listener, ListeningSocket
from progressd.ws.websocket import CLOSE_TIMEOUT
from structlog.testing import capture_logs
from support.daemon import RunningDaemon, progress, registered, running_daemon, settings_in
from support.peer import Peer, close_frame, request, upgrade
from support.samples import ID
from support.scarcity import no_descriptors_left
from support.submitting import submit
from support.waiting import PATIENCE, eventually, jumping
from trio.testing import MockClock, wait_all_tasks_blocked


def warnings(logs: Iterable[MutableMapping[str, Any]]) -> list[str]:
    return [entry["event"] for entry in logs if entry["log_level"] == "warning"]


# accepting


async def test_new_clients_wait_for_free_descriptors(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    host, port = daemon.address.split(":")
    with trio.socket.socket() as sock, capture_logs() as logs:
        async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
            await watcher.receive_until("progress")
            with no_descriptors_left():
                await sock.connect((host, int(port)))
                newcomer = Peer(trio.SocketStream(sock))
                await newcomer.send(request("/api/health"))
                began = trio.current_time()
                await eventually(lambda: warnings(logs) and trio.current_time() > began + 0.25)
                await daemon.daemon.ingest.submit(ProgressEvent(ID, ReportedProgress(2, 100)))
                assert (await watcher.receive())["data"]["current_step"] == 2
            assert (await newcomer.response()).status == 200
    assert warnings(logs) == ["cannot accept connections for now"]


# one connection is one connection


class Broken:
    """Servers that fail, except for /ws/good."""

    async def websocket(self, connection: Connection) -> None:
        target = connection.take_handshake().target
        if target == "/ws/good":
            connection.transport.send(b"good")
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fail, "one thing")
            nursery.start_soon(self.fail, "another thing")

    async def http(self, connection: Connection) -> bool:
        raise ZeroDivisionError("http")

    async def fail(self, what: str) -> None:
        raise RuntimeError(what)


BROKEN = Broken()


@asynccontextmanager
async def listening_with(nursery: trio.Nursery, connection_log: ConnectionLog | None = None) -> AsyncIterator[Any]:
    """Run a listener with broken servers; yields its address."""
    log = connection_log or ConnectionLog()
    listener = Listener(BROKEN.websocket, BROKEN.http, nursery, Limits(), log)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        nursery.start_soon(listener.run, listening)
        yield listening.getsockname()
        nursery.cancel_scope.cancel()


async def ask(address: Any, data: bytes) -> bytes:
    async with Peer(await trio.open_tcp_stream(*address)) as peer:
        await peer.send(data)
        return await peer.rest()


async def test_a_failed_handler_ends_only_its_connection(nursery: trio.Nursery) -> None:
    async with listening_with(nursery) as address:
        for data in (upgrade("/ws/bad"), request("/")):
            with capture_logs() as logs:
                assert await ask(address, data) == b""
            [entry] = [entry for entry in logs if entry["log_level"] == "error"]
            assert entry["event"] == "connection failed"
            assert await ask(address, upgrade("/ws/good")) == b"good"


@pytest.mark.parametrize("task", [(module, "accept_forever"), (Authenticator, "run")])
async def test_the_end_of_any_task_ends_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: tuple[Any, str]
) -> None:
    settings, listening = settings_in(tmp_path / "state"), trio.Event()

    def on_listening(_url: str) -> None:
        listening.set()

    async def leak_cancellation(*_: Any) -> None:
        """Raise a cancellation outside of its scope, as after a nursery that was not exited properly."""
        await listening.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                stray = error
        raise stray

    monkeypatch.setattr(*task, leak_cancellation)
    for change in ("set_threshold", "freeze"):
        monkeypatch.setattr(f"gc.{change}", lambda *_: None)
    with (
        pytest.RaisesGroup(
            pytest.RaisesExc(RuntimeError, match="ended without a signal"), flatten_subgroups=True, allow_unwrapped=True
        ),
        trio.fail_after(PATIENCE),
    ):
        await serve(settings, lambda: settings, on_listening=on_listening)


async def test_a_response_reaches_a_client_that_is_still_sending(daemon: RunningDaemon) -> None:
    """A close with unread bytes would reset the connection, and the client would lose the response."""
    for head in (upgrade("/ws/jobs/nonsense"), request("/ws/jobs", {"Connection": "close"})):
        async with Peer(await daemon.connect()) as peer:
            await peer.send(head + b"x" * 300_000)
            response = await peer.response()
            assert (response.status, list(response.json)) in ((400, ["error", "code"]), (426, ["error", "code"]))


async def test_the_wait_for_a_close_is_bounded(nursery: trio.Nursery, slow_clock: MockClock) -> None:
    connection_log = ConnectionLog()
    async with listening_with(nursery, connection_log) as address, Peer(await trio.open_tcp_stream(*address)) as peer:
        await peer.send(upgrade("/ws/good"))
        await jumping(slow_clock, LINGER_TIMEOUT / 2, lambda: connection_log.counts.total() == 1)


async def test_connections_without_a_request_are_bounded(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_handshakes": 2}) as daemon, AsyncExitStack() as leaving:
        for _ in range(3):
            await leaving.enter_async_context(await daemon.connect())
        await eventually(lambda: daemon.daemon.connection_log.counts == {("rejected", "too many handshakes"): 1})
        async with Peer(
            await daemon.connect()
        ) as peer:  # a request at once is served, and the oldest connection is closed
            assert (await peer.ask("/api/health")).status == 200
        await eventually(lambda: daemon.daemon.connection_log.counts["rejected", "too many handshakes"] == 2)


# stopping


@pytest.mark.parametrize("held_by_systemd", [True, False])
async def test_a_closed_port_serves_the_connections_that_wait(nursery: trio.Nursery, held_by_systemd: bool) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with ListeningSocket(server.detach(), held_by_systemd=held_by_systemd) as listening:
        address = listening.getsockname()
        async with Peer(await trio.open_tcp_stream(*address)) as peer:
            await peer.send(upgrade("/ws/good"))
            Listener(BROKEN.websocket, BROKEN.http, nursery, Limits(), ConnectionLog()).stop(listening)
            if held_by_systemd:
                listening.accept()[0].close()
            else:
                assert await peer.rest() == b"good"
                with pytest.raises(OSError, match="failed"):
                    await trio.open_tcp_stream(*address)


async def test_a_stop_notifies_and_disconnects_watchers(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, shutdown={"drain_timeout": 7}) as daemon:
        await daemon.report(registered(ID), progress(ID, 1))
        async with AsyncExitStack() as leaving:
            watchers = [
                await leaving.enter_async_context(daemon.watch(path)) for path in ("/ws", "/ws/jobs", f"/ws/jobs/{ID}")
            ]
            for watcher in watchers[1:]:
                await watcher.receive_until("progress")
            daemon.kill(signal.SIGTERM)
            leaves = await leaving.enter_async_context(daemon.watch())
            await leaves.receive_until("server_shutdown")
            await trio.aclose_forcefully(leaves.stream)  # this disturbs no other close
            for watcher in watchers:
                [notice] = await watcher.rest()
                assert notice == {
                    "type": "server_shutdown",
                    "data": {"reason": "the daemon is stopping", "countdown_secs": 7},
                }
                assert await watcher.closed() == (1001, "draining")
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()


async def test_answered_closes_do_not_delay_the_stop(slow_clock: MockClock, tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, close_timeout=3600) as daemon,
        Peer(await daemon.connect()) as watcher,
        Peer(await daemon.connect()) as silent,
        Peer(await daemon.connect()) as slow,
    ):
        await watcher.open()
        await slow.send(upgrade()[:30])
        await eventually(lambda: daemon.daemon.connection_log.open == 3)
        began = trio.current_time()
        daemon.kill()
        assert await watcher.close_code() == 1001
        await watcher.send(close_frame(1001))
        for peer in (watcher, silent, slow):
            assert await peer.rest() == b""
        await daemon.stop()
        assert trio.current_time() - began < CLOSE_TIMEOUT
    async with running_daemon(tmp_path, close_timeout=0.03) as daemon, Peer(await daemon.connect()) as peer:
        await peer.open("/ws/jobs")
        await daemon.stop()
        assert await peer.close_code() == 1001


async def test_a_second_signal_ends_the_wait_for_watchers(slow_clock: MockClock, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, close_timeout=math.inf) as daemon, Peer(await daemon.connect()) as peer:
        await peer.open()
        daemon.kill()
        assert await peer.close_code() == 1001  # the client does not answer
        daemon.kill()
        with trio.fail_after(CLOSE_TIMEOUT / 2):
            await daemon.stopped.wait()


async def test_watchers_get_a_jobs_end_before_the_stop(tmp_path: Path) -> None:
    steps = """
import json, sys
for step in (1, 2):
    print(json.dumps({"type": "progress", "data": {"current_step": step, "total_steps": 2}}))
    open(sys.argv[1]).read()  # a FIFO, on which the test lets it go on
"""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    pipeline = Pipeline(("{python}", "-uc", steps, str(fifo)))
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}) as daemon:
        job_id = await submit(daemon, "pdf")
        async with daemon.watch(f"/ws/jobs/{job_id}") as watcher:
            await watcher.receive_until("progress")
            daemon.kill()
            assert (await watcher.receive())["type"] == "server_shutdown"
            await trio.to_thread.run_sync(fifo.write_text, "on", abandon_on_cancel=True)
            assert (await watcher.receive())["data"]["current_step"] == 2
            await trio.to_thread.run_sync(fifo.write_text, "on", abandon_on_cancel=True)
            assert (await watcher.receive_until("completed"))[-1]["job_id"] == job_id
            assert await watcher.closed() == (1000, "job finished")
        await daemon.stop()


async def test_close_wakes_a_reader() -> None:
    sock, other = socket.socketpair()
    sock.setblocking(False)
    transport = SocketTransport(sock)
    with other, pytest.RaisesGroup(trio.ClosedResourceError), trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive_some, 1)
            await wait_all_tasks_blocked()
            transport.close()
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_some(1)
