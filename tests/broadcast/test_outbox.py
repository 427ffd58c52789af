"""The backlog against a list, and the socket outbox under any interleaving of messages, control frames and room."""

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from progressd.broadcast.envelope import PING, Envelope, FrameBatch
from progressd.broadcast.outbox import FLUSH_BYTES, Backlog, ControlFrame, FanOut, MemoryBudget
from progressd.core.close_codes import JOB_FINISHED, SLOW_CONSUMER, CloseCode
from progressd.core.messages import Error, ErrorData, Message
from support.outboxes import Connection
from support.peer import frames_in
from support.samples import job_id, moved
from support.waiting import settled
from wsproto.frame_protocol import Opcode

# The backlog


class Item(NamedTuple):
    key: object
    frame: bytes


class BacklogAgainstAList(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.backlog: Backlog[Item] = Backlog()
        self.model: list[Item] = []

    @rule(key=st.sampled_from([None, None, b"\x89", ("progress", "a"), ("progress", "b")]), size=st.integers(1, 40))
    def put(self, key: object, size: int) -> None:
        item = Item(key, b"x" * size)
        self.backlog.put(item)
        if key is not None:
            self.model = [other for other in self.model if other.key != key]
        self.model.append(item)

    @rule(most=st.none() | st.integers(0, 100))
    def take(self, most: int | None) -> None:
        expected: list[Item] = []
        while self.model and (
            most is None or not expected or sum(len(i.frame) for i in (*expected, self.model[0])) <= most
        ):
            expected.append(self.model.pop(0))
        assert self.backlog.take(most) == expected

    @rule()
    @precondition(lambda self: len(self.model) > 3)
    def clear(self) -> None:
        self.backlog.clear()
        self.model.clear()

    @invariant()
    def sizes_agree(self) -> None:
        assert self.backlog.size == sum(len(item.frame) for item in self.model)
        assert bool(self.backlog) == bool(self.model)


TestBacklogAgainstAList = BacklogAgainstAList.TestCase
TestBacklogAgainstAList.settings = settings(stateful_step_count=30)

# The socket outbox


def change(number: int, size: int = 0) -> Error:
    return Error(job_id(1), ErrorData(f"{number}{'x' * size}"))


def control(opcode: int, payload: bytes) -> bytes:
    return bytes((0x80 | opcode, len(payload))) + payload


def framed(*messages: Message) -> list[bytes]:
    return [Envelope(1, message).frame for message in messages]


async def test_messages_go_straight_to_a_socket_with_room(nursery: trio.Nursery) -> None:
    connection = Connection(nursery, room=10**6)
    connection.put(change(1), moved(1), moved(2))
    connection.outbox.write(PING)
    connection.put(change(2))
    assert bytes(connection.socket.written) == b"".join(
        [*framed(change(1), moved(1), moved(2)), PING, *framed(change(2))]
    )
    assert not connection.senders


@pytest.mark.parametrize("room", [10_000, 70, 1, 0])
async def test_held_data_is_sent_at_once_and_in_order(nursery: trio.Nursery, room: int) -> None:
    connection = Connection(nursery, room=room)
    connection.outbox.hold()
    connection.put(change(1), change(2))
    connection.outbox.write(PING)
    connection.put(change(3))
    assert connection.socket.sends == 0
    connection.outbox.release()
    assert connection.socket.sends == 1
    connection.outbox.release()
    connection.socket.give(10_000)
    await connection.drained()
    connection.put(change(4))
    expected = b"".join([*framed(change(1), change(2)), PING, *framed(change(3), change(4))])
    assert bytes(connection.socket.written) == expected


async def test_held_data_is_not_limited(nursery: trio.Nursery) -> None:
    budget = MemoryBudget(10)
    connection = Connection(nursery, limit=10, room=10_000, budget=budget)
    connection.outbox.hold()
    connection.outbox.write(b"HTTP/1.1 101")
    connection.put(change(1, size=1000))
    connection.outbox.release()
    assert bytes(connection.socket.written) == b"HTTP/1.1 101" + b"".join(framed(change(1, size=1000)))
    assert (connection.endings, budget.used) == ([], 0)


async def test_newer_progress_replaces_waiting_progress(nursery: trio.Nursery) -> None:
    connection = Connection(nursery)
    one, other = job_id(1), job_id(2)
    connection.put(moved(1, one), moved(1, other), change(1), moved(2, one), moved(3, one))
    connection.socket.give(10**6)
    await settled()
    assert bytes(connection.socket.written) == b"".join(framed(moved(1, other), change(1), moved(3, one)))


async def test_only_the_newest_waiting_ping_and_pong_are_sent(nursery: trio.Nursery) -> None:
    connection = Connection(nursery)
    for number in b"12345":
        connection.outbox.write(control(9, bytes((number,))))
        connection.outbox.write(control(10, bytes((number,))))
    connection.socket.give(10**6)
    await settled()
    assert connection.read() == [(Opcode.PING, b"5"), (Opcode.PONG, b"5")]


async def test_after_dropped_messages_only_the_close_is_sent(nursery: trio.Nursery) -> None:
    connection = Connection(nursery, limit=1000, room=10)
    close = control(8, SLOW_CONSUMER.code.to_bytes(2, "big"))
    for number in range(50):
        connection.put(change(number, 100))
    connection.outbox.write(close)
    connection.socket.give(10**6)
    await settled()
    assert bytes(connection.socket.written) == b"".join([*framed(change(0, 100)), close])


@pytest.mark.parametrize("room", [10**6, 0])
@pytest.mark.parametrize("ended", [True, False])
async def test_nothing_follows_a_close_frame(nursery: trio.Nursery, room: int, ended: bool) -> None:
    connection = Connection(nursery, room=room)
    close = control(Opcode.CLOSE, b"\x03\xe8")
    fan_out = FanOut()
    connection.outbox.follow(fan_out)
    connection.put(change(1))
    if ended:
        connection.outbox.end(JOB_FINISHED)
    connection.outbox.write_close(close)
    connection.put(change(2))
    fan_out.put(FrameBatch([Envelope(3, change(3))]))
    connection.outbox.write(PING)
    connection.outbox.end(SLOW_CONSUMER)
    connection.socket.give(10**6)
    await settled()
    assert bytes(connection.socket.written) == b"".join([*framed(change(1)), close])
    assert connection.endings == [JOB_FINISHED] * ended


async def test_a_dead_socket_discards_everything(nursery: trio.Nursery) -> None:
    connection = Connection(nursery, limit=100)
    connection.socket.dead = True
    for number in range(50):
        connection.put(change(number, 100))
    await connection.drained()
    assert not connection.endings
    assert not connection.senders


@pytest.mark.parametrize("how", ["dead", "closed"])
async def test_a_dying_socket_leaves_nothing_waiting(nursery: trio.Nursery, how: str) -> None:
    connection = Connection(nursery, room=5)
    connection.put(change(1), change(2))
    await settled()
    setattr(connection.socket, how, True)
    connection.socket.give(0)
    await connection.drained()
    assert not connection.senders
    connection.put(change(3))
    assert len(connection.socket.written) == 5


async def test_a_discarded_outbox_does_nothing_more(nursery: trio.Nursery) -> None:
    budget = MemoryBudget(1000)
    gone, slow = Connection(nursery, budget=budget), Connection(nursery, budget=budget)
    gone.put(change(1, 100))
    await settled()
    gone.outbox.discard()
    assert budget.used == 0
    gone.put(change(2))
    gone.outbox.write(PING)
    gone.outbox.end(JOB_FINISHED)
    gone.outbox.give_up()
    for number in range(20):
        slow.put(change(number, 100))
    gone.socket.give(10**6)
    await settled()
    assert (gone.endings, bytes(gone.socket.written), gone.senders) == ([], b"", 0)
    assert slow.endings == [SLOW_CONSUMER]


async def test_drained_returns_after_the_last_byte(nursery: trio.Nursery) -> None:
    connection = Connection(nursery)
    done = trio.Event()

    async def wait() -> None:
        await connection.drained()
        done.set()

    connection.put(change(1))
    nursery.start_soon(wait)
    await settled()
    connection.socket.give(len(framed(change(1))[0]) - 1)
    await settled()
    assert not done.is_set()
    connection.socket.give(1)
    await settled()
    assert done.is_set()
    await connection.drained()


async def test_a_cancelled_sender_shuts_the_outbox() -> None:
    async with trio.open_nursery() as senders:
        connection = Connection(senders, room=5)
        connection.put(change(1), change(2))
        await settled()
        senders.cancel_scope.cancel()
    connection.socket.give(10**6)
    connection.put(change(3))
    connection.outbox.write(PING)
    await settled()
    assert bytes(connection.socket.written) == framed(change(1))[0][:5]


async def test_progress_beyond_the_next_64_kib_can_be_replaced(nursery: trio.Nursery) -> None:
    connection = Connection(nursery)
    connection.put(change(1, FLUSH_BYTES), moved(1))
    await settled()  # the sender has begun
    connection.put(moved(2))
    connection.socket.give(10**6)
    await settled()
    assert bytes(connection.socket.written) == b"".join(framed(change(1, FLUSH_BYTES), moved(2)))


# All outboxes together


async def test_past_the_budget_the_slowest_is_given_up(
    nursery: trio.Nursery,
) -> None:
    budget = MemoryBudget(1000)
    slow, slower, quick = (Connection(nursery, budget=budget, room=room) for room in (0, 7, 10**6))
    for connection in (slow, slower, quick):
        connection.put(change(1, 250))
    slower.put(change(2, 200))
    assert not slower.endings
    slow.put(change(2, 300))
    assert (slow.endings, slower.endings, quick.endings) == ([SLOW_CONSUMER], [], [])
    for connection in (slow, slower, quick):
        connection.socket.give(10**6)
        await connection.drained()
    assert bytes(slow.socket.written) == b""
    assert bytes(slower.socket.written) == b"".join(framed(change(1, 250), change(2, 200)))
    assert bytes(quick.socket.written) == b"".join(framed(change(1, 250)))
    assert budget.used == 0


async def test_giving_up_overrides_a_waiting_end(
    nursery: trio.Nursery,
) -> None:
    budget = MemoryBudget(1000)
    slower, slow = Connection(nursery, budget=budget), Connection(nursery, budget=budget)
    slower.put(change(1, 600))
    slower.outbox.end(JOB_FINISHED)
    slow.put(change(1, 300))
    assert slower.endings == [JOB_FINISHED, SLOW_CONSUMER]
    assert not slow.endings
    slower.socket.give(10**6)
    await slower.drained()
    assert not slower.socket.written


# Any interleaving


class Put(NamedTuple):
    """Put a batch: job, whether progress, and size of each item."""

    items: list[tuple[int, bool, int]]


class Write(NamedTuple):
    """Write a ping or a pong."""

    opcode: int


class Give(NamedTuple):
    """Give the socket room, without letting the sender run."""

    room: int


class Settle(NamedTuple):
    """Let the sender run for as long as it can."""


puts = st.builds(
    Put,
    st.lists(st.tuples(st.integers(1, 2), st.booleans(), st.sampled_from([0, 1, 60, 70_000])), min_size=1, max_size=4),
)
writes = st.builds(Write, st.sampled_from([9, 10]))
gives = st.builds(Give, st.sampled_from([0, 1, 2, 90, 150, 400, 65536, 200_000]))
interleavings = st.lists(st.one_of(puts, puts, writes, gives, st.just(Settle())), max_size=40)


Step: TypeAlias = Put | Write | Give | Settle


class Sent(NamedTuple):
    """One put or written item: its key and the message that a client reads."""

    key: object
    frame: bytes
    read: tuple[Opcode, bytes]


@dataclass
class Played:
    """Items put before the end, messages put after it, and what the client read, by position."""

    endings: list[CloseCode]
    sent: list[Sent] = field(default_factory=list)
    too_late: list[tuple[Opcode, bytes]] = field(default_factory=list)
    read: list[int] = field(default_factory=list)


def message(number: int, job: int, progress: bool, size: int) -> Envelope:
    told = moved(number, job_id(job)) if progress else Error(job_id(job), ErrorData(f"{number} {'x' * size}"))
    return Envelope(1, told)


async def play(steps: list[Step], limit: int) -> Played:
    """Run the steps, end and close, and drain the outbox."""
    numbers = itertools.count()
    async with trio.open_nursery() as nursery:
        connection = Connection(nursery, limit, room=100)
        played = Played(connection.endings)
        for step in steps:
            ended = bool(played.endings)
            match step:
                case Put(items):
                    batch = [message(next(numbers), *item) for item in items]
                    if ended:
                        played.too_late += [frame for item in batch for frame in frames_in(item.frame)]
                    else:
                        played.sent += [Sent(item.key, item.frame, *frames_in(item.frame)) for item in batch]
                    connection.outbox.put(FrameBatch(batch))
                case Write(opcode):
                    frame = control(opcode, b"%d" % next(numbers))
                    played.sent.append(Sent(ControlFrame(frame).key, frame, *frames_in(frame)))
                    connection.outbox.write(frame)
                case Give(room):
                    connection.socket.give(room)
                case Settle():
                    await settled()
            never_replaced = sum(len(item.frame) for item in played.sent if item.key is None)
            assert played.endings or never_replaced - len(connection.socket.written) <= limit
        connection.outbox.end(JOB_FINISHED)
        connection.outbox.write(control(8, (1000).to_bytes(2, "big")))
        connection.socket.give(10**9)
        await connection.drained()
        *read, close = connection.read()
    assert close == (Opcode.CLOSE, (1000).to_bytes(2, "big"))
    assert not set(played.too_late) & set(read)
    places = {item.read: place for place, item in enumerate(played.sent)}
    played.read = [places[frame] for frame in read]
    return played


def run(steps: list[Step], limit: int) -> Played:
    return trio.run(partial(play, steps, limit), clock=trio.testing.MockClock(autojump_threshold=0))


def missing(played: Played) -> list[Sent]:
    """Return items that never arrived although no newer one replaced them."""
    newest = {item.key: place for place, item in enumerate(played.sent) if item.key is not None}
    read = set(played.read)
    return [
        item for place, item in enumerate(played.sent) if place not in read and newest.get(item.key, place) == place
    ]


@given(interleavings)
def test_any_interleaving_sends_all_messages_in_order(steps: list[Step]) -> None:
    played = run(steps, 10**9)
    assert played.endings == [JOB_FINISHED]
    assert played.read == sorted(set(played.read))
    assert not missing(played)


@given(interleavings, st.sampled_from([60, 200, 500, 2000, 70_000, 150_000]))
def test_any_interleaving_past_the_limit_ends_once(steps: list[Step], limit: int) -> None:
    played = run(steps, limit)
    assert played.endings in ([JOB_FINISHED], [SLOW_CONSUMER])
    assert played.read == sorted(set(played.read))
    texts = [place for place in played.read if played.sent[place].read[0] is Opcode.TEXT]
    behind_the_last = texts[-1] + 1 if texts else 0
    lost = [played.sent.index(item) for item in missing(played) if item.read[0] is Opcode.TEXT]
    assert all(place >= behind_the_last for place in lost)
    assert played.endings == [SLOW_CONSUMER] or not lost
