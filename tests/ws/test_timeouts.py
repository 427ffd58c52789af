"""The heartbeat of a connection, and what counts as a sign of life; over memory."""

import math
from typing import Any

import pytest
import trio
from progressd.config.settings import Limits
from progressd.ws.websocket import CLOSE_TIMEOUT
from support.daemon import settings_in
from support.memory import HOUR, LongPast, Server, answering, close_and_when, when
from support.peer import close_frame, frame
from support.samples import moved, started
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode


def test_the_defaults_are_those_of_the_protocol() -> None:
    limits = Limits()
    assert (limits.heartbeat_interval, limits.connection_timeout, limits.handshake_timeout) == (30, 300, 10)
    assert (limits.max_connections, limits.max_message_bytes) == (100, 65536)


async def test_a_client_that_answers_is_pinged_every_30_seconds_and_stays(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    async with answering(peer) as pings:
        await trio.sleep(HOUR + 1)
    assert [round(at - start) for at in pings] == list(range(30, 3601, 30))
    assert server.ended_at is None
    await server.broadcaster.broadcast(started())
    assert "processing" in (await peer.next_frame())[1]


async def test_a_client_without_a_sign_of_life_is_closed_after_5_minutes(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    pings = 0
    while (got := await peer.next_frame())[0] is Opcode.PING:
        pings += 1
    assert (got[0], tuple(got[1])) == (Opcode.CLOSE, (4001, "timed out"))
    assert round(trio.current_time() - start) == 300
    assert pings in (9, 10)  # the tenth is due in the same moment


async def test_one_that_stops_answering_is_closed_5_minutes_after_its_last_answer(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect()
    async with answering(peer) as pings:
        await trio.sleep(605)
    code, _, at = await close_and_when(peer)
    assert code == 4001
    assert round(at - pings[-1]) == 300


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([frame(Opcode.TEXT, b"hello")] * 5, id="messages"),
        pytest.param([frame(Opcode.PING)] * 5, id="pings"),
        pytest.param([frame(Opcode.PONG)] * 5, id="pongs"),
        pytest.param([bytes([byte]) for byte in frame(Opcode.TEXT, b"hello")], id="a frame byte by byte"),
    ],
)
async def test_whatever_a_client_says_keeps_it_alive(
    server: Server, autojump_clock: MockClock, said: list[bytes]
) -> None:
    _, peer = await server.connect()
    for data in said:
        await trio.sleep(299)
        await peer.send(data)
    last = trio.current_time()
    code, _, at = await close_and_when(peer)
    assert (code, round(at - last)) == (4001, 300)


async def test_what_the_daemon_sends_is_no_sign_of_life(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    await server.broadcaster.broadcast(started())
    for step in range(1, 30):
        await trio.sleep(10)
        await server.broadcaster.broadcast(moved(step))
    code, _, at = await close_and_when(peer)
    assert (code, round(at - start)) == (4001, 300)


SUBSCRIBE = frame(Opcode.TEXT, b'{"type":"subscribe","topics":["jobs"]}')
REQUESTS = SUBSCRIBE + 4 * frame(Opcode.TEXT, b'{"type":"ping"}')  # more than are read before the first is done with


async def test_a_client_that_takes_a_long_replay_slowly_is_alive_whatever_it_has_asked_meanwhile(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, LongPast())
    connection, peer = await server.connect("/ws")
    connection.full = True
    await peer.send(REQUESTS)
    for _ in range(10):
        await trio.sleep(100)
        connection.room, connection.full = 2, False  # for a part, and the ping behind it
    connection.room, connection.full = math.inf, False
    async with answering(peer) as pings:
        await trio.sleep(HOUR)
    assert server.ended_at is None
    assert len(pings) >= 119


async def test_a_client_that_takes_nothing_of_a_long_replay_is_given_up(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, LongPast())
    connection, peer = await server.connect("/ws")
    connection.full = True
    start = trio.current_time()
    await peer.send(REQUESTS)
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert round(server.ended_at - start) == 300 + CLOSE_TIMEOUT


async def test_a_client_that_is_told_to_try_again_is_gone_once_it_answers_the_close(
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


async def test_interval_and_timeout_are_settings(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, heartbeat_interval=2, connection_timeout=7)
    _, peer = await server.connect()
    start = trio.current_time()
    for due in (2, 4, 6):
        assert round(await when(peer, Opcode.PING) - start) == due
    code, _, at = await close_and_when(peer)
    assert (code, round(at - start)) == (4001, 7)


async def test_interval_and_timeout_can_change_for_those_who_are_there(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path)
    (_, one), (_, another) = await server.connect(), await server.connect()
    await trio.sleep(20)
    server.watchers.use(settings_in(tmp_path, limits={"heartbeat_interval": 2, "connection_timeout": 7}))
    start = trio.current_time()
    for due in (0, 2, 4, 6):  # the ping that is overdue now comes at once
        for peer in (one, another):
            assert round(await when(peer, Opcode.PING) - start) == due
    await one.send(frame(Opcode.PONG))
    assert [round((await close_and_when(peer))[2] - start) for peer in (another, one)] == [7, 13]


async def test_a_longer_interval_and_timeout_count_for_those_who_are_there(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, heartbeat_interval=2, connection_timeout=7)
    _, peer = await server.connect()
    server.watchers.use(settings_in(tmp_path, limits={"heartbeat_interval": 100, "connection_timeout": 250}))
    start = trio.current_time()
    assert [round(await when(peer, Opcode.PING) - start) for _ in range(2)] == [100, 200]
    assert round((await close_and_when(peer))[2] - start) == 250
