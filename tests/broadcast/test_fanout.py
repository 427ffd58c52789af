"""The fan-out: every outbox in it gets every batch, whether its socket has room, has none, or is dead."""

from collections import defaultdict
from functools import partial
from typing import NamedTuple, TypeAlias

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from progressd.broadcast.envelope import PING, Envelope, FrameBatch
from progressd.broadcast.outbox import FanOut
from progressd.core.close_codes import JOB_FINISHED
from progressd.core.messages import Error, ErrorData
from support.outboxes import Collected, Connection
from support.peer import frames_in
from support.samples import job_id, moved
from support.waiting import settled
from wsproto.frame_protocol import Opcode


def batch_of(*numbers: int) -> FrameBatch[Envelope]:
    return FrameBatch([Envelope(number, Error(job_id(1), ErrorData(str(number)))) for number in numbers])


def texts(connection: Connection) -> list[bytes]:
    return [payload for opcode, payload in connection.read() if opcode is Opcode.TEXT]


def payloads(batches: list[FrameBatch[Envelope]]) -> list[bytes]:
    return [payload for batch in batches for _, payload in frames_in(batch.frames)]


async def test_slow_or_dead_sockets_do_not_affect_others(nursery: trio.Nursery) -> None:
    batch = batch_of(1, 2)
    rooms = [10**6, 0, len(batch.frames) - 1, 10**6, 10**6]
    connections = [Connection(nursery, room=room) for room in rooms]
    connections[3].socket.dead = True
    crowd, collected = FanOut(), Collected()
    crowd.add(collected)
    for connection in connections:
        connection.outbox.follow(crowd)
    crowd.put(batch)
    crowd.put(batch_of(3))
    assert collected.offsets == [1, 2, 3]
    assert [len(texts(connection)) for connection in (connections[0], connections[4])] == [3, 3]
    for connection in connections:
        connection.socket.give(10**6)
        await connection.drained()
    expected = payloads([batch, batch_of(3)])
    assert [texts(connection) for connection in connections] == [expected, expected, expected, [], expected]


async def test_nothing_overtakes_a_waiting_ping(nursery: trio.Nursery) -> None:
    crowd, connection = FanOut(), Connection(nursery, room=1)
    connection.outbox.follow(crowd)
    connection.outbox.write(PING)
    connection.socket.room = 10**6
    crowd.put(batch_of(1))
    await connection.drained()
    assert [opcode for opcode, _ in connection.read()] == [Opcode.PING, Opcode.TEXT]


async def test_an_outbox_that_follows_while_full_keeps_its_order(nursery: trio.Nursery) -> None:
    crowd, connection = FanOut(), Connection(nursery)
    connection.put(moved(1))
    connection.outbox.follow(crowd)
    connection.socket.give(10**6)
    crowd.put(batch_of(2))
    await connection.drained()
    assert len(texts(connection)) == 2
    crowd.put(batch_of(3))
    assert texts(connection)[1:] == payloads([batch_of(2), batch_of(3)])


# Any interleaving


class Put(NamedTuple):
    """Put a batch of some messages."""

    count: int


class Give(NamedTuple):
    """Give one socket room."""

    who: int
    room: int


class Ping(NamedTuple):
    """Write a control frame to one outbox."""

    who: int


class End(NamedTuple):
    """End one outbox."""

    who: int


class Leave(NamedTuple):
    """Remove one outbox."""

    who: int


class Settle(NamedTuple):
    """Let the senders run for as long as they can."""


Step: TypeAlias = Put | Give | Ping | End | Leave | Settle
WATCHERS = 3
whos = st.integers(0, WATCHERS - 1)
puts = st.builds(Put, st.integers(1, 4))
gives = st.builds(Give, whos, st.sampled_from([0, 1, 60, 61, 150, 1000]))
steps = st.one_of(
    puts, puts, gives, gives, st.builds(Ping, whos), st.builds(End, whos), st.builds(Leave, whos), st.just(Settle())
)


async def play(taken: list[Step]) -> None:
    numbers = iter(range(1, 1000))
    expected: defaultdict[int, list[FrameBatch[Envelope]]] = defaultdict(list)
    over: set[int] = set()
    async with trio.open_nursery() as nursery:
        crowd, connections = FanOut(), [Connection(nursery, room=100) for _ in range(WATCHERS)]
        for connection in connections:
            connection.outbox.follow(crowd)
        for step in taken:
            match step:
                case Put(count):
                    batch = batch_of(*(next(numbers) for _ in range(count)))
                    for who in set(range(WATCHERS)) - over:
                        expected[who].append(batch)
                    crowd.put(batch)
                case Give(who, room):
                    connections[who].socket.give(room)
                case Ping(who):
                    connections[who].outbox.write(PING)
                case End(who):
                    over.add(who)
                    connections[who].outbox.end(JOB_FINISHED)
                case Leave(who):
                    over.add(who)
                    crowd.remove(connections[who].outbox)
                case Settle():
                    await settled()
        for connection in connections:
            connection.socket.give(10**9)
            await connection.drained()
    for who, connection in enumerate(connections):
        assert texts(connection) == payloads(expected[who])


@given(st.lists(steps, max_size=40))
def test_any_interleaving_delivers_all_batches_in_order(taken: list[Step]) -> None:
    trio.run(partial(play, taken), clock=trio.testing.MockClock(autojump_threshold=0))
