"""The seam between replay and live messages, at any moment and with a slow history."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.broadcast.subscription import MAX_HELD, REPLAY_BATCH, Page, PastMessages, Subscription
from progressd.core.close_codes import JOB_FINISHED, SLOW_CONSUMER
from progressd.core.errors import StoreFailed
from progressd.core.messages import ALL_JOBS, JobMessage, Progress, ends_job, job_topic
from support.outboxes import Collected
from support.samples import ID, job_id, moved, started, succeeded
from support.waiting import settled

TOPIC = job_topic(ID)


class Log:
    """Durable messages. A read can be held before it starts and before it returns."""

    def __init__(self, page_size: int = 500) -> None:
        self.kept: list[Envelope] = []
        self.waiting: list[trio.Event] = []
        self.open = False
        self._page_size = page_size

    def keep(self, *messages: JobMessage) -> list[Envelope]:
        added = [Envelope(len(self.kept) + place, message) for place, message in enumerate(messages, 1)]
        self.kept += added
        return added

    def let_through(self, which: int = 0) -> None:
        if self.waiting:
            self.waiting.pop(which % len(self.waiting)).set()

    def let_all_through(self) -> None:
        self.open = True
        while self.waiting:
            self.let_through()

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        await self._wait()
        page = self._read(topic, after, upto)
        await self._wait()
        return page

    async def _wait(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.open:
            access = trio.Event()
            self.waiting.append(access)
            await access.wait()

    def _read(self, topic: str, after: int | None, upto: int) -> Page:
        kept = [item for item in self.kept if topic in (ALL_JOBS, topic_of(item))]
        if topic == ALL_JOBS and after is None:
            over = {topic_of(item) for item in kept if ends_job(item.message) and item.offset <= upto}
            kept = [item for item in kept if topic_of(item) not in over]
        changes = [item for item in kept if not is_progress(item) and (after or 0) < item.offset <= upto]
        whole = len(changes) <= self._page_size
        changes = changes[: self._page_size]
        end = upto if whole else changes[-1].offset
        newest = {topic_of(item): item for item in kept if is_progress(item)}
        moved = [item for item in newest.values() if (after or 0) < item.offset <= end]
        finished = topic != ALL_JOBS and any(ends_job(item.message) and item.offset <= upto for item in kept)
        items = sorted([*changes, *moved], key=lambda item: item.offset)
        return Page(PastMessages(items), None if whole else end, finished)


def topic_of(item: Envelope) -> str:
    assert not isinstance(item.message, str)
    return job_topic(item.message.job_id)  # type: ignore[union-attr]


def is_progress(item: Envelope) -> bool:
    return isinstance(item.message, Progress)


async def read_past(subscription: Subscription, outbox: Collected) -> None:
    """Replay a subscription into its outbox."""
    while (batch := await subscription.next_replay()) is not None:
        outbox.put(batch)


class World:
    """A log, a broadcaster, and committed messages that are not published yet."""

    def __init__(self, nursery: trio.Nursery, limit: int = 10**6, page_size: int = 500) -> None:
        self.log = Log(page_size)
        self.broadcaster = Broadcaster(self.log, nursery=nursery, limit=limit)
        self.unpublished: list[Envelope] = []

    def commit(self, *messages: JobMessage) -> None:
        self.unpublished += self.log.keep(*messages)

    async def publish(self, count: int = 10**6) -> None:
        while self.unpublished and count:
            item = self.unpublished.pop(0)
            await self.broadcaster.publish(Envelope(item.offset, item.message))  # type: ignore[arg-type]
            count -= 1

    async def tell(self, *messages: JobMessage) -> None:
        self.commit(*messages)
        await self.publish()

    def join(
        self, topic: str = TOPIC, after: int | None = None, interval: float = 0.0
    ) -> tuple[Subscription, Collected]:
        outbox = Collected()
        return self.broadcaster.join(topic, outbox, after, interval=interval), outbox


# One step at a time


async def test_on_live_is_called_between_replay_and_live(
    nursery: trio.Nursery,
) -> None:
    world = World(nursery)
    await world.tell(started(), moved(1))
    outbox, had = Collected(), list[tuple[int, list[int]]]()
    subscription = world.broadcaster.join(TOPIC, outbox, None, lambda upto: had.append((upto, outbox.offsets)))
    nursery.start_soon(read_past, subscription, outbox)
    await settled()
    await world.tell(moved(2), *succeeded())
    world.log.let_all_through()
    await settled()
    assert had == [(2, [1])]  # newer progress has replaced it
    assert outbox.offsets == [1, 3, 4, 5]


async def test_on_live_is_not_called_for_an_ended_topic(nursery: trio.Nursery) -> None:
    world = World(nursery)
    world.log.let_all_through()
    await world.tell(started(), *succeeded())
    outbox, had = Collected(), list[int]()
    await read_past(world.broadcaster.join(TOPIC, outbox, None, had.append), outbox)
    assert had == []


async def test_too_many_live_messages_end_a_replay(nursery: trio.Nursery) -> None:
    world = World(nursery, limit=1000)
    await world.tell(started())
    subscription, outbox = world.join()
    nursery.start_soon(read_past, subscription, outbox)
    await settled()
    for _ in range(20):  # state changes: none replaces another
        await world.tell(started())
        await settled()
    assert outbox.endings == [SLOW_CONSUMER]
    await world.tell(started())
    world.log.let_all_through()
    await settled()
    assert outbox.messages == []


async def test_held_progress_is_only_the_newest(nursery: trio.Nursery) -> None:
    world = World(nursery, limit=1000)
    await world.tell(started())
    subscription, outbox = world.join()
    nursery.start_soon(read_past, subscription, outbox)
    for step in range(100):
        await world.tell(moved(step))
        await settled()
    world.log.let_all_through()
    await settled()
    assert outbox.messages == [started(), moved(99)]
    assert not outbox.endings


async def test_a_long_replay_comes_in_parts(nursery: trio.Nursery) -> None:
    world = World(nursery, page_size=300)
    world.log.let_all_through()
    many = [started(job_id(number)) for number in range(1000)]
    await world.tell(*many)
    subscription, outbox = world.join(ALL_JOBS, after=0)
    await read_past(subscription, outbox)
    assert outbox.messages == many
    assert max(len(batch.items) for batch in outbox.batches) == REPLAY_BATCH


async def test_live_messages_during_a_replay_of_all_jobs_are_replayed(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.tell(started())
    subscription, outbox = world.join(ALL_JOBS)
    nursery.start_soon(read_past, subscription, outbox)
    for _ in range(3):
        await world.tell(*(moved(step) for step in range(2 * MAX_HELD)), started(job_id(2)))
        await settled()
        assert not subscription._held
        for _ in range(2):  # a read before it starts, and before it returns
            world.log.let_through()
            await settled()
    await world.tell(moved(7))
    world.log.let_all_through()
    await settled()
    changes = [started(), *[started(job_id(2))] * 3]
    assert [message for message in outbox.messages if not isinstance(message, Progress)] == changes
    assert outbox.messages[-1] == moved(7)
    assert outbox.offsets == sorted(set(outbox.offsets))


async def test_a_slow_replay_of_all_jobs_holds_few_messages(nursery: trio.Nursery) -> None:
    world = World(nursery, limit=1000)
    await world.tell(started())
    subscription, outbox = world.join(ALL_JOBS, after=0)
    nursery.start_soon(read_past, subscription, outbox)
    await world.tell(started())
    for _ in range(3):  # the last read makes the subscription hold messages, more than its limit allows
        world.log.let_through()
        await settled()
    for _ in range(20):
        await world.tell(started())
        await settled()
        assert subscription._held.size <= 1000
    world.log.let_all_through()
    await settled()
    assert outbox.offsets == list(range(1, 23))
    assert not outbox.endings


async def test_held_progress_in_a_snapshot_does_not_come_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World(nursery)
    world.log.let_all_through()
    early, got_early = world.join(ALL_JOBS, interval=10.0)
    await read_past(early, got_early)
    await world.tell(started(), moved(1))
    await trio.sleep(1)
    await world.tell(moved(2))
    await settled()
    late, got_late = world.join(ALL_JOBS, interval=10.0)
    await read_past(late, got_late)
    await world.tell(started(job_id(2)))
    await trio.sleep(20)
    await world.tell(moved(3))
    await trio.sleep(20)
    assert got_early.offsets == [1, 2, 4, 3, 5]
    assert got_late.offsets == [1, 3, 4, 5]


async def test_a_failed_replay_can_be_retried(nursery: trio.Nursery) -> None:
    world = World(nursery)
    world.log.let_all_through()
    await world.tell(started(), moved(1))
    subscription, outbox = world.join()
    page, failing = world.log.page, [True]

    async def fails_once(topic: str, after: int | None, upto: int) -> Page:
        if failing.pop() if failing else False:
            raise StoreFailed("disk full")
        return await page(topic, after, upto)

    world.log.page = fails_once  # type: ignore[method-assign]
    with pytest.raises(StoreFailed):
        await read_past(subscription, outbox)
    await world.tell(moved(2))
    await read_past(subscription, outbox)
    await settled()
    assert outbox.messages == [started(), moved(2)]


async def test_a_watcher_that_left_gets_nothing(nursery: trio.Nursery) -> None:
    world = World(nursery)
    world.log.let_all_through()
    (stayed, kept), (left, empty) = world.join(), world.join()
    await read_past(stayed, kept)
    await read_past(left, empty)
    left.leave()
    left.leave()
    await world.tell(started())
    await settled()
    assert (kept.messages, empty.messages) == ([started()], [])


# Any interleaving


class Happen(NamedTuple):
    """Commit the start, progress or (`end`) the end of a job."""

    job: int
    end: bool


class Publish(NamedTuple):
    """Publish the next durable messages."""

    count: int


class Join(NamedTuple):
    """Connect a watcher of a job, or of all (0); from a cursor some messages back, or as a new watcher."""

    job: int
    back: int | None


class LetThrough(NamedTuple):
    """Continue a read of the history."""

    which: int


class Settle(NamedTuple):
    """Let everything continue."""


Step: TypeAlias = Happen | Publish | Join | LetThrough | Settle
happens = st.builds(Happen, st.integers(1, 2), st.sampled_from([False, False, False, True]))
steps = st.lists(
    st.one_of(
        happens,
        happens,
        st.builds(Publish, st.integers(1, 4)),
        st.builds(Join, st.integers(0, 2), st.none() | st.integers(0, 6)),
        st.builds(LetThrough, st.integers(0, 3)),
        st.just(Settle()),
    ),
    max_size=40,
)


@dataclass
class Watcher:
    topic: str
    after: int | None
    top: int
    outbox: Collected
    live_after: int | None = None  # nothing was held back after this offset

    async def run(self, subscription: Subscription, broadcaster: Broadcaster) -> None:
        await read_past(subscription, self.outbox)
        self.live_after = broadcaster.offset
        await self.outbox.ended.wait()
        subscription.leave()


async def play(
    todo: list[Step], limit: int, page_size: int, interval: float = 0.0
) -> tuple[list[Envelope], list[Watcher]]:
    """Play a story. `interval`: that of all watchers; it passes in two of the steps Settle."""
    watchers: list[Watcher] = []
    async with trio.open_nursery() as nursery:
        world = World(nursery, limit, page_size)
        going: dict[int, int] = {}
        for step in todo:
            match step:
                case Happen(job, end) if going.get(job, 0) >= 0:
                    id_ = job_id(job)
                    going[job] = -1 if end else going.get(job, 0) + 1
                    if end:
                        world.commit(*succeeded(id_))
                    else:
                        world.commit(started(id_) if going[job] == 1 else moved(going[job], id_))
                case Publish(count):
                    await world.publish(count)
                case Join(job, back):
                    topic = job_topic(job_id(job)) if job else ALL_JOBS
                    top = world.broadcaster.offset
                    after = None if back is None else max(0, top - back)
                    subscription, outbox = world.join(topic, after, interval)
                    watchers.append(Watcher(topic, after, top, outbox))
                    nursery.start_soon(watchers[-1].run, subscription, world.broadcaster)
                case LetThrough(which):
                    world.log.let_through(which)
                case Settle():
                    await settled()
                    if interval:
                        await trio.sleep(interval / 2)
        await world.publish()
        world.log.let_all_through()
        await settled()
        if interval:
            await trio.sleep(3 * interval)
        nursery.cancel_scope.cancel()
    return world.log.kept, watchers


def run(todo: list[Step], limit: int, page_size: int, interval: float = 0.0) -> tuple[list[Envelope], list[Watcher]]:
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(partial(play, todo, limit, page_size, interval), clock=clock)


def owed(watcher: Watcher, log: list[Envelope]) -> list[Envelope]:
    """Return all messages that a watcher may get: of its topic after its cursor; of jobs unfinished at its start."""
    heard = [item for item in log if watcher.topic in (ALL_JOBS, topic_of(item)) and item.offset > (watcher.after or 0)]
    if watcher.topic == ALL_JOBS and watcher.after is None:
        over = {topic_of(item) for item in log if ends_job(item.message) and item.offset <= watcher.top}
        heard = [item for item in heard if topic_of(item) not in over]
    return heard


@given(steps, st.integers(1, 4))
def test_nothing_is_missing_and_nothing_comes_twice(todo: list[Step], page_size: int) -> None:
    log, watchers = run(todo, 10**6, page_size)
    for watcher in watchers:
        got, heard = watcher.outbox.offsets, owed(watcher, log)
        assert got == sorted(set(got))
        assert set(got) <= {item.offset for item in heard}
        newest = {topic_of(item): item.offset for item in heard if is_progress(item)}
        assert watcher.live_after is not None
        for item in heard:
            if not is_progress(item) or newest[topic_of(item)] == item.offset or item.offset > watcher.live_after:
                assert item.offset in got
        over = watcher.topic != ALL_JOBS and any(topic_of(i) == watcher.topic and ends_job(i.message) for i in log)
        assert watcher.outbox.endings == ([JOB_FINISHED] if over else [])


@given(steps, st.integers(1, 4))
def test_nothing_is_missing_with_an_interval(todo: list[Step], page_size: int) -> None:
    log, watchers = run(todo, 10**6, page_size, interval=1.0)
    for watcher in watchers:
        got, heard = watcher.outbox.offsets, owed(watcher, log)
        assert len(got) == len(set(got))
        assert set(got) <= {item.offset for item in heard}
        changes = [item.offset for item in heard if not is_progress(item)]
        assert [offset for offset in got if offset in changes] == changes
        newest = {topic_of(item): item.offset for item in heard if is_progress(item)}
        assert set(got) >= set(newest.values())
        for topic in newest:
            mine = [item.offset for item in watcher.outbox.items if topic_of(item) == topic]
            assert mine == sorted(mine)


@given(steps, st.integers(1, 4), st.sampled_from([1, 200, 400]))
def test_past_the_limit_a_stream_ends(todo: list[Step], page_size: int, limit: int) -> None:
    log, watchers = run(todo, limit, page_size)
    for watcher in watchers:
        got, changes = watcher.outbox.offsets, [item.offset for item in owed(watcher, log) if not is_progress(item)]
        assert got == sorted(set(got))
        assert len(watcher.outbox.endings) <= 1
        if SLOW_CONSUMER not in watcher.outbox.endings:
            assert set(changes) <= set(got)
        elif got:
            assert {offset for offset in changes if offset < got[-1]} <= set(got)
