"""Many topics on one socket: every message once, in the order of offsets."""

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import CAPACITY, Envelope, FrameBatch
from progressd.broadcast.multiplex import Session
from progressd.broadcast.subscription import Page, PastMessages
from progressd.core.close_codes import SLOW_CONSUMER
from progressd.core.errors import StoreFailed
from progressd.core.messages import ALL_JOBS, JobMessage, Progress, ends_job, job_topic
from support.outboxes import Collected
from support.samples import ID, job_id, moved, started, succeeded
from support.waiting import PATIENCE

IDS = [job_id(number) for number in (1, 2, 3)]
TOPICS = [*map(job_topic, IDS), ALL_JOBS]


class Log:
    """Durable messages; reads take time if `slow`."""

    def __init__(self) -> None:
        self.kept: list[Envelope] = []
        self.broken = False
        self.slow = True
        self.meanwhile: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # runs after each page is read

    def keep(self, message: JobMessage) -> Envelope:
        offset = len(self.kept) + 1
        self.kept.append(Envelope(offset, replace(message, cursor=f"store-{offset}")))
        return self.kept[-1]

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        if self.slow:
            await trio.testing.wait_all_tasks_blocked()
        if self.broken:
            raise StoreFailed("the disk is full")
        kept = [
            item for item in self.kept if topic in (ALL_JOBS, job_topic(item.message.job_id)) and item.offset <= upto
        ]
        over = {item.message.job_id for item in kept if ends_job(item.message)}
        if topic == ALL_JOBS and after is None:
            kept = [item for item in kept if item.message.job_id not in over]
        newest = {item.message.job_id: item for item in kept if isinstance(item.message, Progress)}
        items = [
            item
            for item in kept
            if item.offset > (after or 0)
            and (not isinstance(item.message, Progress) or newest[item.message.job_id] is item)
        ]
        if self.slow:
            await self.meanwhile()
        return Page(PastMessages(items), None, topic != ALL_JOBS and bool(over))


class World:
    """A broadcaster over a log, with one session."""

    def __init__(self, nursery: trio.Nursery, limit: int = 10**6) -> None:
        self.log = Log()
        self.broadcaster = Broadcaster(self.log, nursery=nursery, limit=limit)
        self.outbox = Collected()
        self.had: list[int] = []
        self.session: Session = self.broadcaster.open_session(self.outbox)

    async def tell(self, *messages: JobMessage) -> None:
        for item in [self.log.keep(message) for message in messages]:
            await self.broadcaster.publish(item)

    async def subscribe(self, *topics: str, after: int | None = None) -> int:
        """Return the offset of the answer; `had`: the messages received before."""
        answers: list[int] = []

        def answer(upto: int) -> None:
            answers.append(upto)
            self.had = self.offsets

        await self.session.subscribe(topics, after, trio.lowlevel.checkpoint, answer)
        [upto] = answers
        return upto

    @property
    def offsets(self) -> list[int]:
        return [item.offset for item in self.outbox.items]


async def quiet() -> None:
    await trio.testing.wait_all_tasks_blocked()


STEPS = st.one_of(
    st.tuples(st.just("tell"), st.sampled_from([0, 1, 2]), st.sampled_from(["move", "move", "start", "burst", "end"])),
    st.tuples(
        st.just("subscribe"), st.lists(st.sampled_from(TOPICS), min_size=1, max_size=3, unique=True), st.booleans()
    ),
)


@given(st.lists(STEPS, max_size=25), st.booleans())
@example(  # end and beginning are in different parts of the replay
    [
        *[("tell", 2, "burst")] * 2,
        ("subscribe", [ALL_JOBS], True),
        ("tell", 2, "end"),
        ("subscribe", [job_topic(IDS[2])], False),
    ],
    False,
)
async def test_any_session_gets_every_change_once_in_order(steps: list[tuple[str, object, object]], slow: bool) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        world.log.slow = slow
        bystander = world.broadcaster.open_session(Collected())  # so that the fan-out runs already
        await bystander.subscribe(TOPICS, None, trio.lowlevel.checkpoint, lambda upto: None)
        subscribed: dict[str, int] = {}
        asked: set[str] = set()
        over: set[str] = set()
        tasks: list[trio.Event] = []
        for what, which, how in steps:
            if what == "tell":
                job = IDS[which]  # type: ignore[call-overload]
                if job in over:
                    continue
                messages: Sequence[JobMessage] = {
                    "move": [moved(1, job)],
                    "start": [started(job)],
                    "burst": [started(job), moved(1, job)] * 80,
                    "end": [*succeeded(job)],
                }[str(how)]
                if how == "end":
                    over.add(job)
                await world.tell(*messages)
                continue
            if tasks:
                await tasks[-1].wait()  # requests of a client are handled in order
            new = [topic for topic in which if topic not in asked]  # type: ignore[attr-defined]
            if not new:
                continue
            asked.update(new)
            done = trio.Event()
            tasks.append(done)

            async def subscribe(topics: Sequence[str] = new, done: trio.Event = done) -> None:
                top = await world.subscribe(*topics)
                subscribed.update(dict.fromkeys(topics, top))
                await check_resuming(world, subscribed, top)
                done.set()

            nursery.start_soon(subscribe)
            if how:
                await done.wait()
        for task in tasks:
            await task.wait()
        await quiet()
        nursery.cancel_scope.cancel()

    got = [item.offset for item in world.outbox.items]
    for job in IDS:
        mine = [item for item in world.outbox.items if item.message.job_id == job]
        changes = [item.offset for item in mine if not isinstance(item.message, Progress)]
        assert changes == sorted(set(changes))
        told = [item.offset for item in world.log.kept if item.message.job_id == job]
        told_changes = [
            item.offset
            for item in world.log.kept
            if item.message.job_id == job and not isinstance(item.message, Progress)
        ]
        if job_topic(job) in subscribed or (
            ALL_JOBS in subscribed and (not told or ends_at(world.log, job) > subscribed[ALL_JOBS])
        ):
            assert changes == told_changes
    live = [item.offset for item in world.outbox.items if item.message.cursor]
    assert live == sorted(live)
    assert len(got) == len(set(got))


async def check_resuming(world: World, subscribed: dict[str, int], top: int) -> None:
    """Check that everything up to the offset of an answer came before it, and the rest after resuming."""
    resumed = Collected()
    had = world.had
    session = world.broadcaster.open_session(resumed)
    await session.subscribe(list(subscribed), top, trio.lowlevel.checkpoint, lambda upto: None)
    session.leave()
    assert not set(had) & set(resumed.offsets)
    assert max(had, default=0) <= top
    newest = {item.message.job_id: item.offset for item in world.log.kept if isinstance(item.message, Progress)}
    for item in world.log.kept[: max([top, *resumed.offsets])]:
        wanted = job_topic(item.message.job_id) in subscribed or item.offset > subscribed.get(ALL_JOBS, math.inf)
        if wanted and (not isinstance(item.message, Progress) or newest[item.message.job_id] == item.offset):
            assert item.offset in (had if item.offset <= top else resumed.offsets)


def ends_at(log: Log, job: str) -> float:
    ends = (item.offset for item in log.kept if item.message.job_id == job and ends_job(item.message))
    return next(ends, float("inf"))


async def test_an_earlier_ended_job_is_replayed(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.tell(started(), *succeeded())
    await world.subscribe(ALL_JOBS)
    assert world.offsets == []
    await world.subscribe(job_topic(ID))
    assert world.offsets == [1, 2, 3]


async def test_replayed_messages_have_no_cursor(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.tell(started())
    await world.subscribe(job_topic(ID))
    await world.tell(moved(1))
    await quiet()
    assert [bool(item.message.cursor) for item in world.outbox.items] == [False, True]


async def test_the_answer_waits_for_messages_on_other_topics(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.subscribe(job_topic(ID))
    world.log.slow = False
    await world.tell(*[started()] * 600)
    assert await world.subscribe(job_topic(job_id(2))) == 600
    assert world.had == list(range(1, 601))
    await world.tell(*[started()] * 600)
    assert await world.subscribe() == 1200  # of its topics
    assert world.had == list(range(1, 1201))


async def test_live_messages_during_a_replay_follow_the_answer(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.subscribe(job_topic(ID))
    await world.tell(started(), started(job_id(2)))

    async def more() -> None:
        await world.tell(started(), started(job_id(2)))
        await quiet()

    world.log.meanwhile = more
    assert await world.subscribe(job_topic(job_id(2))) == 2
    assert world.had == [2, 1]
    await quiet()
    assert world.offsets == [2, 1, 3, 4]


async def test_a_topic_that_ends_during_its_replay_is_left(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.tell(started())

    async def end() -> None:
        await world.tell(*succeeded())
        await quiet()

    world.log.meanwhile = end
    await world.subscribe(job_topic(ID))
    assert world.offsets == [1, 2, 3]
    assert world.session.topics == {}
    world.log.meanwhile = trio.lowlevel.checkpoint
    await world.subscribe(job_topic(ID))
    assert world.offsets == [1, 2, 3] * 2


async def test_a_topic_that_ends_during_another_replay_is_replayed(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.tell(started())

    async def end() -> None:
        if len(world.log.kept) == 1:
            await world.tell(*succeeded())
            await quiet()

    world.log.meanwhile = end
    await world.subscribe(ALL_JOBS, job_topic(ID), after=0)
    assert world.offsets == [1, 2, 3]


async def test_ended_topics_leave_nothing(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.subscribe(job_topic(ID), job_topic(job_id(2)), job_topic(job_id(3)))
    await world.tell(started(), *succeeded())
    await quiet()
    world.session.unsubscribe(job_topic(job_id(2)))
    assert list(world.session.topics) == [job_topic(job_id(3))]
    world.session.leave()
    assert world.session.topics == {}
    assert world.broadcaster._sessions.members == {}
    await world.tell(started(job_id(3)))
    await quiet()
    assert len(world.outbox.items) == 3


@pytest.mark.parametrize("live", [True, False])
async def test_messages_of_an_ended_topic_do_not_come_twice(nursery: trio.Nursery, live: bool) -> None:
    world = World(nursery)
    if not live:
        await world.tell(started(), *succeeded())
    await world.subscribe(job_topic(ID))
    if live:
        await world.tell(started(), *succeeded())
    await quiet()
    await world.subscribe(ALL_JOBS, after=0)
    await quiet()
    assert world.offsets == [1, 2, 3]


async def test_a_failed_subscription_changes_nothing(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.subscribe(job_topic(ID))
    world.log.broken = True
    with pytest.raises(StoreFailed):
        await world.subscribe(job_topic(job_id(2)))
    assert list(world.session.topics) == [job_topic(ID)]
    await world.tell(started(), started(job_id(2)))
    await quiet()
    assert world.offsets == [1]


async def test_too_many_held_messages_end_the_session(nursery: trio.Nursery) -> None:
    world = World(nursery, limit=1000)
    await world.subscribe(job_topic(ID))

    async def more() -> None:
        await world.tell(*[started()] * 20)
        await quiet()

    world.log.meanwhile = more
    await world.subscribe(job_topic(job_id(2)))
    assert world.outbox.endings == [SLOW_CONSUMER]


class Defective(Collected):
    def put(self, batch: FrameBatch[Envelope]) -> None:
        if batch.items:
            raise ValueError("a defect")


@pytest.mark.parametrize("defective", [True, False])
async def test_a_finished_fan_out_does_not_block_the_publisher(
    autojump_clock: trio.testing.MockClock, defective: bool
) -> None:
    with pytest.RaisesGroup(ValueError) if defective else nullcontext():
        async with trio.open_nursery() as nursery:
            broadcaster = Broadcaster(nursery=nursery)
            session = broadcaster.open_session(Defective() if defective else Collected())
            await session.subscribe([ALL_JOBS], None, trio.lowlevel.checkpoint, lambda _: None)
            if not defective:
                nursery.cancel_scope.cancel()
            with trio.fail_after(PATIENCE, shield=True):  # as the daemon's last batch
                for step in range(2 * CAPACITY):
                    await broadcaster.broadcast(moved(step))
