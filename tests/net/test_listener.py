"""The one port: whatever becomes of one connection, the others and the daemon go on, and in the end it stops."""

import errno
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.app import serve
from progressd.config.settings import Limits
from progressd.core.events import ProgressEvent, ReportedProgress
from progressd.core.pipeline import Pipeline
from progressd.net import listener as module
from progressd.net.accept import ListeningSocket, accept_forever
from progressd.net.connection_log import ClosedConnection, ConnectionLog
from progressd.net.listener import Connection, Listener, Start
from structlog.testing import capture_logs
from support.daemon import RunningDaemon, progress, registered, running_daemon, settings_in
from support.peer import Peer, close_frame, request, upgrade
from support.samples import ID
from support.scarcity import no_descriptors_left
from support.submitting import submit
from support.waiting import PATIENCE, eventually


def warnings(logs: Iterable[MutableMapping[str, Any]]) -> list[str]:
    return [entry["event"] for entry in logs if entry["log_level"] == "warning"]


# accepting


async def test_without_descriptors_watchers_are_served_and_newcomers_wait(daemon: RunningDaemon) -> None:
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


async def test_without_descriptors_whoever_tries_to_accept_is_seen_to_work(nursery: trio.Nursery) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ListeningSocket.over(server) as listening,
        socket.create_connection(listening.getsockname()),
        no_descriptors_left(),
    ):
        with trio.move_on_after(0.3) as nobody:
            await listening.accepts()
        nursery.start_soon(accept_forever, listening, lambda sock, _: sock.close())
        with trio.fail_after(PATIENCE):
            await listening.accepts()
        nursery.cancel_scope.cancel()
    assert nobody.cancelled_caught


class FlakySocket(socket.socket):
    """A listening socket on which accept(2) fails as often as there are errors."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            raise OSError(self.errors.pop(), "as the test wants it")
        return super().accept()


@asynccontextmanager
async def flaky(*errors: int) -> AsyncIterator[FlakySocket]:
    with FlakySocket() as listening:
        listening.errors = list(errors)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield listening


async def test_connections_that_came_to_nothing_do_not_end_the_accepting(nursery: trio.Nursery) -> None:
    accepted: list[tuple[socket.socket, str]] = []

    def accept(sock: socket.socket, peer: str) -> None:
        accepted.append((sock, peer))

    async with flaky(errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EHOSTUNREACH, errno.ENETDOWN) as listening:
        nursery.start_soon(accept_forever, listening, accept)
        with socket.create_connection(listening.getsockname()):
            await eventually(lambda: accepted)
        nursery.cancel_scope.cancel()
    for sock, peer in accepted:
        assert (sock.getblocking(), peer) == (False, "127.0.0.1")
        sock.close()


async def test_a_listening_socket_that_is_broken_is_no_reason_to_spin(nursery: trio.Nursery) -> None:
    async with flaky(errno.EINVAL) as listening:
        with socket.create_connection(listening.getsockname()), pytest.raises(OSError, match="as the test wants it"):
            with trio.fail_after(PATIENCE):
                await accept_forever(listening, lambda sock, _: sock.close())


# one connection is one connection


async def let_out() -> None:
    """A cancellation that leaves the scope it was meant for, as from a nursery that is not left as it should be."""
    stray: list[trio.Cancelled] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            stray.append(cancelled)
    raise stray.pop()


class Broken:
    """Both sides of a listener, neither of which works, but for the WebSocket side with /ws/good."""

    async def websocket(self, connection: Connection) -> None:
        if b"/ws/cancelled" in connection.unread:
            await let_out()
        if b"/ws/good" in connection.unread:
            await connection.stream.send_all(b"good")
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fail, "one thing")
            nursery.start_soon(self.fail, "another thing")

    async def serve(self, connection: Connection) -> bool:
        raise ZeroDivisionError("http")

    async def fail(self, what: str) -> None:
        raise RuntimeError(what)

    def make(self, sock: socket.socket, peer: str, start: Start) -> Connection:
        """An encrypted connection that cannot be made."""
        raise RuntimeError("no context")

    def make_half(self, sock: socket.socket, peer: str, start: Start) -> Connection:
        """One whose task fails."""
        start(partial(self.fail, "flushing"))
        return Connection(sock, peer)


BROKEN = Broken()
Asked = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def listening_with(
    nursery: trio.Nursery, connection_log: ConnectionLog | None = None
) -> AsyncIterator[tuple[Listener, Asked]]:
    """A listener between broken sides, and what sends it bytes and gives back its answer."""
    listener = Listener(BROKEN.websocket, BROKEN, nursery, Limits(), connection_log or ConnectionLog())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        nursery.start_soon(listener.run, listening)

        async def asked(data: bytes) -> bytes:
            async with Peer(await trio.open_tcp_stream(*listening.getsockname())) as peer:
                await peer.send(data)
                return await peer.rest()

        yield listener, asked
        nursery.cancel_scope.cancel()


class Forgetful(ConnectionLog):
    """A ledger that can count, and cannot tell."""

    def ended(self, connection: ClosedConnection, error: BaseException | None = None) -> None:
        super().ended(connection, error)
        raise struct.error("unpack requires a buffer of 216 bytes")


async def test_a_handler_that_fails_ends_its_connection_and_is_logged_once(nursery: trio.Nursery) -> None:
    async with listening_with(nursery) as (_, asked):
        for data in (upgrade("/ws/bad"), upgrade("/ws/cancelled"), request("/")):
            with capture_logs() as logs:
                assert await asked(data) == b""
            [entry] = [entry for entry in logs if entry["log_level"] == "error"]
            assert entry["event"] == "connection failed"
            assert await asked(upgrade("/ws/good")) == b"good"


async def test_a_daemon_that_ends_though_nobody_told_it_to_stop_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "accept_forever", lambda *_: let_out())
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="ended without a signal"), flatten_subgroups=True):
        async with running_daemon(tmp_path) as daemon:
            await daemon.stopped.wait()


async def test_a_daemon_ends_unasked_with_any_of_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(tmp_path / "state")
    listening = trio.Event()

    async def run(_: ConnectionLog) -> None:
        await listening.wait()
        await let_out()

    async def on_listening(_url: str) -> None:
        listening.set()

    monkeypatch.setattr(ConnectionLog, "run", run)
    for change in ("set_threshold", "freeze"):
        monkeypatch.setattr(f"gc.{change}", lambda *_: None)
    with pytest.raises(RuntimeError, match="ended without a signal"), trio.fail_after(PATIENCE):
        await serve(settings, lambda: settings, on_listening=on_listening)


async def test_encryption_that_fails_ends_its_connection_and_is_logged_once(nursery: trio.Nursery) -> None:
    async with listening_with(nursery) as (listener, asked):
        for make in (BROKEN.make, BROKEN.make_half):
            listener.encrypt(make)
            with capture_logs() as logs:
                assert await asked(b"") == b""
            [entry] = [entry for entry in logs if entry["log_level"] == "error"]
            assert entry["event"] == "connection failed"
        listener.encrypt(None)
        assert await asked(upgrade("/ws/good")) == b"good"


async def test_an_end_that_cannot_be_told_ends_nothing_else(nursery: trio.Nursery) -> None:
    connection_log = Forgetful()
    async with listening_with(nursery, connection_log) as (_, asked):
        with capture_logs() as logs:
            for _ in range(2):
                assert await asked(upgrade("/ws/good")) == b"good"
            await eventually(lambda: connection_log.counts.total() == 2)
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
            "the end of a connection cannot be told"
        ] * 2
        assert connection_log.open == 0


async def test_an_answer_reaches_a_client_that_is_still_sending(daemon: RunningDaemon) -> None:
    """To close a socket with bytes unread would reset it, and the answer would be lost."""
    for head in (upgrade("/ws/jobs/nonsense"), request("/ws/jobs", {"Connection": "close"})):
        async with Peer(await daemon.connect()) as peer:
            await peer.send(head + b"x" * 300_000)
            response = await peer.response()
            assert (response.status, list(response.json)) in ((400, ["error"]), (426, ["error"]))


async def test_a_client_that_never_closes_is_waited_for_only_a_little(
    daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.1)
    before = await daemon.settled()
    async with Peer(await daemon.connect()) as peer:
        await peer.send(upgrade("/ws/jobs/nonsense"))
        assert (await peer.response()).status == 400
        await daemon.leaves_only(before._replace(descriptors=before.descriptors + 1))  # ours


@pytest.mark.parametrize("path", ["/api/health", "/", "/ws/jobs", "/api/jobs/x"])
async def test_http_clients_that_leave_are_forgotten_at_once(daemon: RunningDaemon, path: str) -> None:
    before = await daemon.settled()
    for leave in (Peer.reset, lambda peer: peer.stream.aclose(), lambda peer: peer.stream.send_eof()):
        used, asking, silent = [Peer(await daemon.connect()) for _ in range(3)]
        await used.ask(path)
        await asking.send(request(path))
        for peer in (used, asking, silent):
            await leave(peer)
        if used.stream.socket.fileno() != -1:
            for peer in (used, asking, silent):
                await peer.rest()
                await peer.stream.aclose()
    await daemon.leaves_only(before)


async def test_connections_without_a_request_are_bounded(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_handshakes": 2}) as daemon, AsyncExitStack() as leaving:
        for _ in range(3):
            await leaving.enter_async_context(await daemon.connect())
        await eventually(lambda: daemon.daemon.connection_log.counts == {("refused", "too many handshakes"): 1})
        async with Peer(await daemon.connect()) as peer:  # who asks at once is let in, and the oldest has to go
            assert (await peer.ask("/api/health")).status == 200
        await eventually(lambda: daemon.daemon.connection_log.counts["refused", "too many handshakes"] == 2)


# stopping


@pytest.mark.parametrize("lasting", [True, False])
async def test_a_port_that_ends_serves_what_waits_in_it(nursery: trio.Nursery, lasting: bool) -> None:
    with ListeningSocket.over(socket.create_server(("127.0.0.1", 0))) as listening:
        listening.lasting = lasting
        address = listening.getsockname()
        async with Peer(await trio.open_tcp_stream(*address)) as peer:
            await peer.send(upgrade("/ws/good"))
            Listener(BROKEN.websocket, BROKEN, nursery, Limits(), ConnectionLog()).stop(listening)
            if lasting:
                listening.accept()[0].close()
            else:
                assert await peer.rest() == b"good"
                with pytest.raises(OSError, match="failed"):
                    await trio.open_tcp_stream(*address)


async def test_watchers_are_told_that_the_daemon_stops_and_are_sent_away(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, shutdown={"drain_timeout": 7}) as daemon:
        await daemon.report(registered(ID), progress(ID, 1))
        async with AsyncExitStack() as leaving:
            watchers = [
                await leaving.enter_async_context(daemon.watch(path)) for path in ("/ws", "/ws/jobs", f"/ws/jobs/{ID}")
            ]
            for watcher in watchers[1:]:
                await watcher.receive_until("progress")
            daemon.kill(signal.SIGTERM)
            for watcher in watchers:
                [told] = await watcher.rest()
                assert told == {
                    "type": "server_shutdown",
                    "data": {"reason": "the daemon is stopping", "countdown_secs": 7},
                }
                assert await watcher.closed() == (1001, "draining")
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()


@pytest.fixture
def nothing_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds up the end does so for longer than a test waits."""
    for name in ("progressd.app.CLOSE_TIMEOUT", "progressd.ws.websocket.CLOSE_TIMEOUT"):
        monkeypatch.setattr(name, 3600)


@pytest.mark.usefixtures("nothing_given_up")
async def test_it_stops_at_once_when_nobody_is_there(daemon: RunningDaemon) -> None:
    await daemon.stop()


@pytest.mark.usefixtures("nothing_given_up")
async def test_a_single_watcher_that_answers_does_not_hold_it_up(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open()
        daemon.kill()
        assert await peer.close_code() == 1001
        await peer.send(close_frame(1001))
        assert await peer.rest() == b""
    await daemon.stop()


@pytest.mark.usefixtures("nothing_given_up")
async def test_clients_that_have_asked_for_nothing_do_not_hold_it_up(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as silent, Peer(await daemon.connect()) as slow:
        await slow.send(upgrade()[:30])
        await eventually(lambda: len(daemon.daemon.watchers) == 0)
        daemon.kill()
        assert await silent.rest() == b""
        assert await slow.rest() == b""
    await daemon.stop()


@pytest.mark.usefixtures("nothing_given_up")
async def test_a_watcher_that_does_not_answer_the_close_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progressd.app.CLOSE_TIMEOUT", 0.3)
    async with running_daemon(tmp_path) as daemon, Peer(await daemon.connect(receive_buffer=4096)) as peer:
        await peer.open("/ws/jobs")
        before = trio.current_time()
        await daemon.stop()
        assert trio.current_time() - before > 0.2
        assert await peer.close_code() == 1001


async def test_while_a_job_runs_on_its_watchers_are_told_until_its_end(tmp_path: Path) -> None:
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


async def test_reading_from_a_connection_that_was_closed_is_told_as_such() -> None:
    one, other = socket.socketpair()
    with other:
        connection = Connection(one, "peer")
        one.close()
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive_some()
