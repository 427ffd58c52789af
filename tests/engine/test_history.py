"""The history from memory and from the store, and the seam to live messages."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.core.errors import NotFound, SlowConsumer
from progressd.core.events import Event, RequeueEvent, RunnerEvent, StartEvent
from progressd.core.messages import ALL_JOBS, Cursor, JobMessage, Progress, batch_topic, ends_job, job_topic, type_of
from progressd.engine.history import History
from progressd.engine.registry import Batches, Registry
from progressd.store.sqlite import SQLiteStore
from support.outboxes import Collected
from support.passes import counted
from support.samples import ID, job_id
from support.spine import Spine, cancel, complete, fail, progress, register, running, start, started_again, submit
from support.waiting import PATIENCE

TOPIC = job_topic(ID)
PAGE = 2  # messages
T = TypeVar("T")


@pytest.fixture
async def forgetful(store: SQLiteStore) -> AsyncIterator[Spine]:
    """A spine in which almost everything comes from the store, in many pages."""
    async with running(store, max_finished=1, page_size=PAGE) as spine:
        yield spine


class Told(NamedTuple):
    """The fields of a message that tests compare."""

    number: int
    type: str

    @classmethod
    def of(cls, message: JobMessage) -> "Told":
        return cls(int(message.job_id[-12:], 16), type_of(message))


async def page(history: History, topic: str, after: int | None, upto: int) -> tuple[list[JobMessage], bool]:
    """Return all pages of a range, and whether the topic is over."""
    messages: list[JobMessage] = []
    while True:
        items, after, over = await history.page(topic, after, upto)
        messages += [item.message for item in items]
        if after is None:
            return messages, over


def offset_of(message: JobMessage) -> int:
    return Cursor.parse(str(message.cursor)).offset


async def told(spine: Spine, topic: str, after: int | None = None, upto: int | None = None) -> list[Told]:
    upto = spine.broadcaster.offset if upto is None else upto
    messages, _ = await page(spine.history, topic, after, upto)
    assert [offset_of(message) for message in messages] == sorted(offset_of(message) for message in messages)
    return [Told.of(message) for message in messages]


# One job


async def test_a_new_watcher_gets_changes_and_progress(spine: Spine) -> None:
    await spine.submit(register(), start(), progress(1), progress(2), register(2), progress(1, 2))
    messages, over = await page(spine.history, TOPIC, None, spine.broadcaster.offset)
    assert [Told.of(message) for message in messages] == [Told(1, "status_change"), Told(1, "progress")]
    assert isinstance(messages[-1], Progress)
    assert messages[-1].data.current_step == 2
    assert not over


async def test_a_finished_job_is_over_after_its_last_message(spine: Spine) -> None:
    await spine.submit(register(), start(), progress(1), complete())
    last = spine.broadcaster.offset
    messages, over = await page(spine.history, TOPIC, None, last)
    assert [type_of(message) for message in messages] == ["status_change", "progress", "status_change", "completed"]
    assert over
    assert (await page(spine.history, TOPIC, last, last)) == ([], True)


async def test_an_unknown_job_is_not_found(spine: Spine) -> None:
    with pytest.raises(NotFound, match=job_id(9)):
        await spine.history.page(job_topic(job_id(9)), None, 100)


async def test_a_requeued_job_has_no_progress(spine: Spine) -> None:
    await spine.submit(submit(), StartEvent(ID), progress(1), RequeueEvent(ID))
    assert await told(spine, TOPIC) == [Told(1, "status_change")] * 2


# All jobs


async def test_a_new_watcher_of_all_jobs_gets_unfinished_ones(spine: Spine) -> None:
    await spine.submit(register(1), register(2), start(1), progress(1, 1), start(2), progress(1, 2), complete(1))
    assert await told(spine, ALL_JOBS) == [
        Told(2, "job_created"),
        Told(2, "status_change"),
        Told(2, "progress"),
    ]


async def test_a_job_that_ends_meanwhile_stays_in_the_snapshot(spine: Spine) -> None:
    await spine.submit(register(), start(), progress(1))
    upto = spine.broadcaster.offset
    await spine.submit(complete())
    assert await told(spine, ALL_JOBS, None, upto) == [
        Told(1, "job_created"),
        Told(1, "status_change"),
        Told(1, "progress"),
    ]


async def test_resuming_returns_newer_changes_and_progress(spine: Spine) -> None:
    await spine.submit(register(1), start(1), progress(1, 1))
    cursor = spine.broadcaster.offset
    await spine.submit(progress(2, 1), register(2), progress(3, 1), fail(2), register(3), progress(1, 3), complete(1))
    assert await told(spine, ALL_JOBS, cursor) == [
        Told(1, "progress"),
        Told(2, "job_created"),
        Told(2, "status_change"),
        Told(2, "error"),
        Told(3, "job_created"),
        Told(3, "status_change"),
        Told(3, "progress"),
        Told(1, "status_change"),
        Told(1, "completed"),
    ]


async def test_watchers_share_a_snapshot_and_get_newer_messages(spine: Spine) -> None:
    await spine.submit(register(1), start(1), progress(1, 1), register(2), register(3), fail(3))
    first = await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset)
    await spine.submit(complete(1), progress(1, 2))
    second = await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset)
    assert second.items is first.items
    assert await told(spine, ALL_JOBS) == [
        Told(1, "job_created"),
        Told(1, "status_change"),
        Told(1, "progress"),
        Told(2, "job_created"),
        Told(1, "status_change"),
        Told(1, "completed"),
        Told(2, "status_change"),
        Told(2, "progress"),
    ]
    del first, second
    assert await told(spine, ALL_JOBS) == [Told(2, "job_created"), Told(2, "status_change"), Told(2, "progress")]


async def test_an_old_snapshot_is_not_shared(store: SQLiteStore) -> None:
    async with running(store, snapshot_max_age=3) as spine:
        await spine.submit(register(1))
        first = await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset)
        await spine.submit(register(2), register(3), register(4), register(5))
        second = await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset)
        assert [len(first.items), len(second.items)] == [1, 5]
        earlier = await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset - 2)
        assert earlier.items is first.items
        del first, earlier
        earlier = await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset - 2)
        assert [item.offset for item in earlier.items] == [1, 2, 3]


async def test_the_oldest_of_too_many_snapshots_is_dropped(store: SQLiteStore) -> None:
    async with running(store, snapshot_max_age=0, max_snapshots=2) as spine:
        snapshots = []
        for number in range(1, 5):
            await spine.submit(register(number))
            snapshots.append((await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset)).items)
        for snapshot in snapshots[:2]:
            assert not snapshot
            with pytest.raises(SlowConsumer):
                snapshot.part(0)
        assert list(map(len, snapshots[2:])) == [3, 4]
        assert all(snapshot.part(0) for snapshot in snapshots[2:])


async def test_watchers_with_the_same_cursor_share_pages(store: SQLiteStore) -> None:
    async with running(store, max_finished=1, page_size=PAGE) as spine:
        await spine.submit(*map(register, range(1, 6)), *map(fail, range(1, 6)))
        upto = spine.broadcaster.offset
        first = await spine.history.page(ALL_JOBS, 1, upto)
        await spine.submit(register(6))
        second = await spine.history.page(ALL_JOBS, 1, spine.broadcaster.offset)
        assert second.items is first.items
        earlier = await spine.history.page(ALL_JOBS, 1, 2)
        assert [item.offset for item in earlier.items] == [2]
        assert len(await told(spine, ALL_JOBS, 1)) == upto


async def test_a_job_in_a_shared_snapshot_is_not_replayed(spine: Spine) -> None:
    await spine.submit(register(1), start(1))
    shared = await spine.history.page(ALL_JOBS, None, spine.broadcaster.offset)
    await spine.submit(complete(1))
    outbox = Collected()
    session = spine.broadcaster.open_session(outbox)
    for topic in (ALL_JOBS, TOPIC):
        await session.subscribe([topic], None, trio.lowlevel.checkpoint, lambda _: None)
    assert [type_of(message) for message in outbox.messages] == [
        *("job_created", "status_change", "status_change", "completed"),
    ]
    assert len(shared.items) == 2


async def test_a_snapshot_survives_forgotten_jobs(forgetful: Spine) -> None:
    numbers = range(1, 8)
    await forgetful.submit(*map(register, numbers), *map(start, numbers), *(progress(9, number) for number in numbers))
    upto = forgetful.broadcaster.offset
    snapshots: list[list[Told]] = []

    async def take() -> None:
        snapshots.append(await told(forgetful, ALL_JOBS, None, upto))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(take)
        await forgetful.submit(*map(complete, numbers))
    kinds = ("job_created", "status_change", "progress")
    assert snapshots == [[Told(number, kind) for kind in kinds for number in numbers]] * 3


async def test_a_snapshot_from_the_store_is_made_in_parts(forgetful: Spine) -> None:
    numbers = range(1, 8)
    await forgetful.submit(*map(register, numbers), *map(start, numbers))
    with counted(History._envelope) as made:
        snapshot = await forgetful.history._stored_snapshot(forgetful.broadcaster.offset)
    assert len(snapshot) == made.total == 2 * len(numbers)
    assert made.most <= PAGE


async def test_many_missed_messages_are_read_page_by_page(forgetful: Spine) -> None:
    await forgetful.submit(*(event for number in range(1, 20) for event in (register(number), fail(number))))
    await forgetful.submit(register(20), progress(1, 20), register(21), progress(1, 21), complete(21))
    items, after, _ = await forgetful.history.page(ALL_JOBS, 0, forgetful.broadcaster.offset)
    assert len(items) == 2
    assert after == items[-1].offset
    assert len(await told(forgetful, ALL_JOBS, 0)) == 19 * 3 + 3 + 5


async def test_pages_of_moved_and_deleted_jobs_are_short(forgetful: Spine) -> None:
    numbers = range(1, 31)
    await forgetful.submit(*map(register, numbers), *map(start, numbers))
    await forgetful.submit(*(progress(9, number) for number in numbers))
    await forgetful.submit(*map(complete, numbers))
    for number in numbers[:-1]:
        await forgetful.ingest.delete(await forgetful.registry.get(job_id(number)))
    after: int | None = 0
    kinds, sizes = Counter[str](), list[int]()
    while after is not None:
        items, after, _ = await forgetful.history.page(ALL_JOBS, after, forgetful.broadcaster.offset)
        kinds.update(type_of(item.message) for item in items)
        sizes.append(len(items))
    assert kinds == {"job_deleted": 29, "job_created": 1, "status_change": 2, "progress": 1, "completed": 1}
    assert max(sizes) <= 4 * PAGE


async def test_progress_of_many_jobs_is_read_in_pages(forgetful: Spine) -> None:
    numbers = range(1, 31)
    await forgetful.submit(*map(register, numbers), *map(start, numbers))
    before = forgetful.broadcaster.offset
    await forgetful.submit(*(progress(9, number) for number in numbers))
    await forgetful.submit(*map(complete, numbers))
    items, after, _ = await forgetful.history.page(ALL_JOBS, before, forgetful.broadcaster.offset)
    assert (len(items), after) == (PAGE, items[-1].offset)
    kinds = [one.type for one in await told(forgetful, ALL_JOBS, before)]
    assert kinds == ["progress"] * 30 + ["status_change", "completed"] * 30


async def test_a_stored_job_with_many_changes_is_read_completely(forgetful: Spine) -> None:
    await forgetful.submit(submit(), StartEvent(ID))
    for step in range(10):
        await forgetful.submit(progress(step), RequeueEvent(ID), StartEvent(ID))
    await forgetful.submit(progress(50), RunnerEvent(ID, complete()))
    seen = await told(forgetful, job_topic(ID))
    resumed = [await told(forgetful, job_topic(ID), after) for after in range(forgetful.broadcaster.offset)]
    await forgetful.submit(*(event for number in range(2, 5) for event in (register(number), fail(number))))
    assert forgetful.registry.known(ID) is None
    assert await told(forgetful, job_topic(ID)) == seen
    assert [await told(forgetful, job_topic(ID), after) for after in range(len(resumed))] == resumed
    assert len(seen) == 1 + 2 * 10 + 1 + 2


class CountedStore(SQLiteStore):
    """Counts its queries."""

    reads = 0

    async def _documents(self, decode: Callable[[Any], T], query: str, *values: object) -> list[T]:
        self.reads += 1
        return await super()._documents(decode, query, *values)


async def test_unknown_topics_cost_two_queries(tmp_path: Path) -> None:
    with closing(CountedStore.open(tmp_path / "store.sqlite")) as store:
        async with running(store) as spine:
            await spine.submit(register(1), register(2), fail(2))
            topics = [kind(job_id(number)) for number in range(1000) for kind in (job_topic, batch_topic)]
            before = store.reads
            found = await spine.history.existing([*topics, ALL_JOBS])
            assert found == {job_topic(ID), job_topic(job_id(2)), ALL_JOBS}
            assert store.reads - before == 2


# Cursors


async def test_a_cursor_of_a_message_can_be_resumed(spine: Spine) -> None:
    [job] = await spine.submit(register())
    newest = spine.broadcaster.offset
    assert not isinstance(job, Exception)
    cursor = spine.history.cursor(job.offset)
    assert spine.history.offset(cursor, newest) == job.offset
    assert spine.history.offset(spine.history.cursor(0), newest) == 0


async def test_a_cursor_of_another_store_is_unknown(spine: Spine) -> None:
    await spine.submit(register(), start())
    newest = spine.broadcaster.offset
    for unknown in (str(Cursor("other", newest)), spine.history.cursor(newest + 1), "", "7", "nonsense", "a-b-c"):
        assert spine.history.offset(unknown, newest) is None


async def test_a_cursor_before_a_deletion_is_too_old(spine: Spine) -> None:
    await spine.submit(register(1))
    before = spine.broadcaster.offset
    *_, job = await spine.submit(start(1), fail(1))
    assert not isinstance(job, Exception)
    assert job.completed_at is not None
    newest = spine.broadcaster.offset
    await spine.submit(register(2))
    assert await spine.store.delete_finished(job.completed_at.replace(year=3000), 10) == [ID]
    assert spine.history.offset(spine.history.cursor(before), newest) is None
    assert spine.history.offset(spine.history.cursor(newest), newest) == newest


async def test_cursors_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with started_again(path) as spine:
        await spine.submit(register(), start())
        cursor = spine.history.cursor(spine.broadcaster.offset - 1)
    async with started_again(path) as spine:
        after = spine.history.offset(cursor, spine.broadcaster.offset)
        await spine.submit(fail())
        assert await told(spine, ALL_JOBS, after) == [
            Told(1, "status_change"),
            Told(1, "status_change"),
            Told(1, "error"),
        ]


# Random events

numbers = st.integers(1, 3)
events = st.one_of(
    st.builds(register, numbers),
    st.builds(register, numbers),
    st.builds(progress, st.integers(1, 99), numbers),
    st.builds(progress, st.integers(1, 99), numbers),
    st.builds(complete, numbers),
    st.builds(fail, numbers),
    st.builds(cancel, numbers),
)
stories = st.lists(st.lists(events, min_size=1, max_size=6), max_size=10)


@settings(max_examples=25)
@given(stories)
def test_memory_and_store_return_the_same_history(
    tmp_path_factory: pytest.TempPathFactory, story: list[list[Event]]
) -> None:
    async def compare() -> None:
        path = tmp_path_factory.mktemp("history") / "store.sqlite"
        async with started_again(path) as spine:
            await spine.submit(register(1))
            for batch in story:
                await spine.submit(*batch)
            upto = spine.broadcaster.offset
        with closing(SQLiteStore.open(path)) as store:
            later = Registry(store)  # without finished jobs
            await later.load()
            from_store = History(store, later, Batches(store), spine.health)
            for topic in (ALL_JOBS, TOPIC):
                for after in (None, *range(upto + 1)):
                    remembered = await page(spine.history, topic, after, upto)
                    assert remembered == await page(from_store, topic, after, upto)

    trio.run(compare)


class SlowStore(SQLiteStore):
    """A store whose reads can be held, before and after."""

    waits: list[int]

    async def _documents(self, decode: Callable[[Any], T], query: str, *values: object) -> list[T]:
        await self._wait()
        rows = await super()._documents(decode, query, *values)
        await self._wait()
        return rows

    async def _wait(self) -> None:
        for _ in range(self.waits.pop() if self.waits else 0):
            await trio.lowlevel.checkpoint()


class Watcher:
    """A watcher that connects at some moment and keeps its messages."""

    def __init__(self, spine: Spine, number: int | None, back: int | None) -> None:
        self.number = number  # of the job, None: all jobs
        self.top = spine.broadcaster.offset
        self.after = None if back is None else max(0, self.top - back)
        self.got: list[JobMessage] = []
        self.more = trio.Event()
        self._reader = spine.broadcaster.subscribe(job_id(number) if number else None, self.after)

    async def run(self) -> None:
        async for message in self._reader:
            self.got.append(message)
            self.more.set()

    def owed(self, everything: list[JobMessage]) -> list[JobMessage]:
        """Return the changes that it must get: of its topic after its cursor; of jobs unfinished at its start."""
        if self.number is not None:
            id_ = job_id(self.number)
            everything = [m for m in everything if m.job_id == id_ and type_of(m) != "job_created"]
        elif self.after is None:
            over = {m.job_id for m in everything if ends_job(m) and offset_of(m) <= self.top}
            everything = [m for m in everything if m.job_id not in over]
        return changes_of(m for m in everything if offset_of(m) > (self.after or 0))

    async def wait_for(self, count: int) -> None:
        while len(changes_of(self.got)) < count:
            self.more = trio.Event()
            await self.more.wait()


def changes_of(messages: Iterable[JobMessage]) -> list[JobMessage]:
    return [message for message in messages if not isinstance(message, Progress)]


@settings(max_examples=25)
@given(
    stories,
    st.lists(st.tuples(st.integers(0, 10), st.sampled_from([None, 1]), st.none() | st.integers(0, 8)), max_size=4),
    st.lists(st.integers(0, 40), max_size=30),
)
def test_a_watcher_that_connects_at_any_moment_misses_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    story: list[list[Event]],
    joins: list[tuple[int, int | None, int | None]],
    waits: list[int],
) -> None:
    """Changes come from memory, from the store in pages, and during either read."""

    async def play(store: SlowStore) -> None:
        watchers: list[Watcher] = []
        store.waits = list(waits)
        async with running(store, max_finished=1, page_size=5) as spine, trio.open_nursery() as watching:
            live = Watcher(spine, None, None)
            watching.start_soon(live.run)
            await spine.submit(register(1))
            for moment, batch in enumerate(story):
                for when, number, back in joins:
                    if when == moment:
                        watchers.append(Watcher(spine, number, back))
                        watching.start_soon(watchers[-1].run)
                await spine.submit(*batch)
            everything = [change.message for change in await spine.store.changes(0, spine.broadcaster.offset, 1000)]
            with trio.move_on_after(PATIENCE):  # missing messages fail below
                for watcher in (live, *watchers):
                    await watcher.wait_for(len(watcher.owed(everything)))
            watching.cancel_scope.cancel()
        for watcher in (live, *watchers):
            got, owed = changes_of(watcher.got), watcher.owed(everything)
            if watcher.number is None and watcher.after is None:  # a job that just ended may come too, but complete
                jobs = {message.job_id for message in (*got, *owed)}
                owed = [message for message in everything if message.job_id in jobs]
            assert got == owed
            offsets = [offset_of(message) for message in watcher.got]
            assert offsets == sorted(set(offsets))

    with closing(SlowStore.open(tmp_path_factory.mktemp("seam") / "store.sqlite")) as store:
        assert isinstance(store, SlowStore)
        trio.run(play, store)
