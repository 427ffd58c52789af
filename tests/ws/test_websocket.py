"""How a WebSocket ends over memory, also for a client that is slow or has left."""

from typing import Any

import pytest
import trio
from progressd.broadcast.envelope import Envelope
from progressd.broadcast.subscription import REPLAY_BATCH, Page, PastMessages
from progressd.core.close_codes import DRAINING
from progressd.core.messages import ServerShutdown, ServerShutdownData
from progressd.net.connection_log import ConnectionOutcome
from progressd.ws.websocket import CLOSE_TIMEOUT, SLOW_CONSUMER_STALL
from support.memory import HOUR, JOB, LongPast, MemoryTransport, Server, close_and_when
from support.peer import Opcode, Peer, close_frame, frame, upgrade
from support.samples import job_id, moved, started, succeeded
from trio.testing import MockClock, wait_all_tasks_blocked


async def test_an_answered_close_disconnects_at_once(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    for message in (started(), *succeeded()):
        await server.broadcaster.broadcast(message)
    code, reason, _ = await close_and_when(peer)
    assert (code, reason) == (1000, "job finished")
    await peer.send(close_frame(1000))
    assert await peer.receive() == b""
    assert trio.current_time() - start < 0.1


async def test_a_client_that_ignores_the_close_is_disconnected(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect()
    for message in (started(), *succeeded()):
        await server.broadcaster.broadcast(message)
    _, _, at = await close_and_when(peer)
    assert await peer.receive() == b""
    assert round(trio.current_time() - at) == CLOSE_TIMEOUT == 5


async def test_a_jobs_end_waits_for_a_slow_client(server: Server, autojump_clock: MockClock) -> None:
    transport, peer = await server.connect()
    transport.full = True
    for message in (started(), moved(50), *succeeded()):
        await server.broadcaster.broadcast(message)
    await trio.sleep(100)
    assert server.ended_at is None
    transport.full = False
    received = [await peer.next_frame() for _ in range(4)]
    assert '"completed"' in received[-1][1]
    code, reason, _ = await close_and_when(peer)
    assert (code, reason) == (1000, "job finished")


async def test_a_jobs_end_waits_until_the_timeout(server: Server, autojump_clock: MockClock) -> None:
    transport, _ = await server.connect()
    start = trio.current_time()
    transport.full = True
    for message in (started(), *succeeded()):
        await server.broadcaster.broadcast(message)
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert 300 <= server.ended_at - start <= 300 + 2 * CLOSE_TIMEOUT
    assert len(server.websockets) == 0


async def fall_behind(server: Server) -> tuple[MemoryTransport, Peer]:
    """Fill a watcher's socket in the middle of a message, and its outbox past the limit."""
    transport, peer = await server.connect()
    await wait_all_tasks_blocked()
    transport.full = True
    await server.broadcaster.broadcast(started())
    await wait_all_tasks_blocked()
    for _ in range(20):
        await server.broadcaster.broadcast(started())
    await wait_all_tasks_blocked()
    return transport, peer


async def test_a_slow_consumer_that_reads_gets_the_close(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, send_buffer_bytes=1000)
    transport, peer = await fall_behind(server)
    transport.chunk = 10
    for _ in range(10):
        await trio.sleep(SLOW_CONSUMER_STALL - 1)
        transport.full = False
    transport.chunk = None
    await trio.sleep(SLOW_CONSUMER_STALL - 1)
    transport.full = False
    assert "processing" in (await peer.next_frame())[1]
    code, reason, _ = await close_and_when(peer)
    assert (code, reason) == (4000, "slow consumer")
    await peer.send(close_frame(4000))
    assert await peer.receive() == b""
    assert server.outcomes == [ConnectionOutcome("closed", "4000 slow consumer")]


@pytest.mark.parametrize("path", ["/ws/jobs", "/ws"])
async def test_a_reader_of_a_dropped_snapshot_is_a_slow_consumer(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock, path: str
) -> None:
    class Snapshot(LongPast):
        items = PastMessages(Envelope(number, moved(number, job_id(number))) for number in range(1, 3 * REPLAY_BATCH))
        may_read = trio.Event()  # set once the client reads nothing

        async def page(self, topic: str, after: int | None, upto: int) -> Page:
            await self.may_read.wait()
            return Page(self.items)

    server = Server(nursery, tmp_path, Snapshot())
    transport, peer = await server.connect(path)
    transport.full = True
    if path == "/ws":
        await peer.send(frame(Opcode.TEXT, b'{"type":"subscribe","topics":["jobs"]}'))
    Snapshot.may_read.set()
    await trio.sleep(1)
    Snapshot.items.drop()
    transport.full = False
    code, reason, _ = await close_and_when(peer)
    assert (code, reason) == (4000, "slow consumer")


async def test_a_slow_consumer_that_reads_nothing_is_cut_off(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, send_buffer_bytes=1000)
    await fall_behind(server)
    start = trio.current_time()
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert SLOW_CONSUMER_STALL <= server.ended_at - start <= SLOW_CONSUMER_STALL + CLOSE_TIMEOUT
    cut_off = ConnectionOutcome("closed", "4000 slow consumer", "cut off before the close was sent")
    assert server.outcomes == [cut_off]


async def test_a_slow_consumer_is_not_closed_as_finished(server: Server, autojump_clock: MockClock) -> None:
    (slow, peer), (other, _) = await server.connect(), await server.connect()
    await wait_all_tasks_blocked()
    slow.full = other.full = True
    await server.broadcaster.broadcast(started())
    await wait_all_tasks_blocked()
    for message in succeeded():
        await server.broadcaster.broadcast(message)
    await wait_all_tasks_blocked()
    server.websockets.budget.limit = 10
    other.full = False
    await trio.sleep(1)
    slow.full = False
    assert "processing" in (await peer.next_frame())[1]
    assert (await close_and_when(peer))[:2] == (4000, "slow consumer")


async def test_a_full_socket_does_not_hide_a_disconnect(server: Server, autojump_clock: MockClock) -> None:
    transport, peer = await server.connect()
    transport.full = True
    await server.broadcaster.broadcast(started())
    await peer.stream.aclose()
    await trio.sleep(1)
    assert server.ended_at is not None
    assert len(server.websockets) == 0


async def test_a_pending_handshake_gets_the_close_of_a_drain(server: Server, autojump_clock: MockClock) -> None:
    server.history.may_answer = trio.Event()
    transport = MemoryTransport()
    server.nursery.start_soon(server.serve, transport)
    peer = Peer(transport.client)
    await peer.send(upgrade(JOB))
    await server.history.asked.wait()
    server.websockets.announce(ServerShutdown(ServerShutdownData("stopping", 5)))
    await server.websockets.close(DRAINING, 1)
    server.history.may_answer.set()
    await peer.opened()
    assert (await close_and_when(peer))[:2] == (1001, "draining")


async def test_watchers_are_sent_away_one_after_the_other(server: Server, autojump_clock: MockClock) -> None:
    peers = [(await server.connect())[1] for _ in range(5)]
    start = trio.current_time()
    await server.websockets.close(DRAINING, 4)
    assert round(trio.current_time() - start) == 4
    times = [await close_and_when(peer) for peer in peers]
    assert [code for code, _, _ in times] == [1001] * 5
