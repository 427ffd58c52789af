"""The heartbeat over memory: pings, timeouts, and what counts as a sign of life."""

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
from progressd.config.settings import Limits
from progressd.ws.websocket import CLOSE_TIMEOUT, Heartbeat
from support.daemon import settings_in
from support.memory import HOUR, LongPast, Server, answering, close_and_when, when
from support.peer import close_frame, frame
from support.samples import moved, started
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode


def test_the_defaults_match_the_protocol() -> None:
    limits = Limits()
    assert (limits.heartbeat_interval, limits.connection_timeout, limits.handshake_timeout) == (30, 300, 10)
    assert (limits.max_connections, limits.max_message_bytes) == (100, 65536)


async def test_a_client_that_answers_is_pinged_every_30_seconds(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    async with answering(peer) as pings:
        await trio.sleep(HOUR + 1)
    assert [round(at - start) for at in pings] == list(range(30, 3601, 30))
    assert server.ended_at is None
    await server.broadcaster.broadcast(started())
    assert "processing" in (await peer.next_frame())[1]


@pytest.mark.parametrize(
    ("limits", "pings", "seconds"),
    [({}, range(30, 300, 30), 300), ({"heartbeat_interval": 2, "connection_timeout": 7}, (2, 4, 6), 7)],
    ids=["defaults", "settings"],
)
async def test_a_silent_client_is_pinged_and_times_out(
    nursery: trio.Nursery,
    tmp_path: Any,
    autojump_clock: MockClock,
    limits: dict[str, float],
    pings: Sequence[int],
    seconds: int,
) -> None:
    server = Server(nursery, tmp_path, **limits)
    _, peer = await server.connect()
    start = trio.current_time()
    assert [round(await when(peer, Opcode.PING) - start) for _ in pings] == [*pings]
    code, reason, at = await close_and_when(peer)
    assert (code, reason, round(at - start)) == (4001, "timed out", seconds)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([frame(Opcode.TEXT, b"hello")] * 5, id="messages"),
        pytest.param([frame(Opcode.PING)] * 5, id="pings"),
        pytest.param([frame(Opcode.PONG)] * 5, id="pongs"),
        pytest.param([bytes([byte]) for byte in frame(Opcode.TEXT, b"hello")], id="a frame byte by byte"),
    ],
)
async def test_any_frame_keeps_a_client_alive(server: Server, autojump_clock: MockClock, sent: list[bytes]) -> None:
    _, peer = await server.connect()
    for data in sent:
        await trio.sleep(299)
        await peer.send(data)
    last = trio.current_time()
    code, _, at = await close_and_when(peer)
    assert (code, round(at - last)) == (4001, 300)


async def test_sent_messages_are_no_sign_of_life(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    await server.broadcaster.broadcast(started())
    for step in range(1, 30):
        await trio.sleep(10)
        await server.broadcaster.broadcast(moved(step))
    code, _, at = await close_and_when(peer)
    assert (code, round(at - start)) == (4001, 300)


SUBSCRIBE = frame(Opcode.TEXT, b'{"type":"subscribe","topics":["jobs"]}')
REQUESTS = SUBSCRIBE + 4 * frame(Opcode.TEXT, b'{"type":"ping"}')  # more than are read before the first is finished


async def test_a_slow_reader_of_a_long_replay_is_alive(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, LongPast())
    transport, peer = await server.connect("/ws")
    transport.full = True
    await peer.send(REQUESTS)
    for _ in range(10):
        await trio.sleep(100)
        transport.room, transport.full = 2, False  # for a part, and the ping behind it
    transport.room, transport.full = math.inf, False
    async with answering(peer) as pings:
        await trio.sleep(HOUR)
    assert server.ended_at is None
    assert len(pings) >= 119


async def test_an_unread_replay_times_out(nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock) -> None:
    server = Server(nursery, tmp_path, LongPast())
    transport, peer = await server.connect("/ws")
    transport.full = True
    start = trio.current_time()
    await peer.send(REQUESTS)
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert round(server.ended_at - start) == 300 + CLOSE_TIMEOUT


async def test_a_client_that_answers_try_again_is_disconnected(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    history = LongPast()
    history.broken = True
    server = Server(nursery, tmp_path, history)
    _, peer = await server.connect("/ws")
    await peer.send(REQUESTS)
    code, _, at = await close_and_when(peer)
    assert code == 1013
    await peer.send(close_frame(1013))
    assert await peer.receive() == b""
    assert trio.current_time() - at < 0.1


@pytest.mark.parametrize(("interval", "seconds", "pings"), [(2, 7, (2, 4, 6)), (100, 250, (100, 200))])
async def test_a_reload_changes_interval_and_timeout_of_open_connections(
    server: Server, tmp_path: Any, autojump_clock: MockClock, interval: float, seconds: float, pings: Sequence[int]
) -> None:
    (_, one), (_, another) = await server.connect(), await server.connect()
    await trio.sleep(20)
    limits = {"heartbeat_interval": interval, "connection_timeout": seconds}
    server.websockets.apply_settings(settings_in(tmp_path, limits=limits))
    start = trio.current_time()
    for due in pings:
        for peer in (one, another):
            assert round(await when(peer, Opcode.PING) - start) == due
    await one.send(frame(Opcode.PONG))
    ends = [round((await close_and_when(peer))[2] - start) for peer in (another, one)]
    assert ends == [seconds, pings[-1] + seconds]


async def test_an_early_disconnect_does_not_stop_the_heartbeat(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    heartbeat, outbox = Heartbeat(Limits()), cast(Any, object())
    nursery.start_soon(heartbeat.run)
    await wait_all_tasks_blocked()
    heartbeat.add(outbox)
    heartbeat.remove(outbox)
    await trio.sleep(HOUR)
