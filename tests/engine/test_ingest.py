"""Ingest on a real SQLite store: the order of commits, messages and answers."""

import math
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import UNSET
from msgspec.structs import replace
from progressd.broadcast.broadcaster import Reader
from progressd.broadcast.filters import ThrottledOutbox
from progressd.core.errors import Conflict, InvalidInput, NotFound, ProgressdError, StoreFailed, Unavailable
from progressd.core.events import BatchCancelEvent, Event, PreviewEvent, RegisterEvent, Registration
from progressd.core.job import Job
from progressd.core.messages import Cursor, JobMessage, JobStatus, PagePreviewData, Progress, encode, job_topic, type_of
from progressd.engine.commands import Outcome
from progressd.engine.follower import STEP
from progressd.engine.history import SNAPSHOT_MAX_AGE
from progressd.engine.ingest import MAX_EVENTS, QUEUE_CAPACITY
from progressd.engine.registry import Registry
from progressd.store.base import Change
from progressd.store.sqlite import SQLiteStore
from progressd.system.log import log_change
from support.outboxes import Collected
from support.passes import counted
from support.samples import ID, job_id
from support.spine import Spine, cancel, complete, fail, progress, register, running, start, started_again, submit
from support.waiting import PATIENCE, settled

QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus
PREVIEW = PreviewEvent(ID, PagePreviewData(3, "aGk=", "deskew", 32, 20))


class WatchedStore(SQLiteStore):
    """Records commits, and can hold them: before they are durable, or before they return."""

    def watch(self) -> "WatchedStore":
        self.commits: list[tuple[list[Job], list[Change]]] = []
        self._reached, self._written = threading.Event(), threading.Event()
        self._before: trio.Event | None = None
        self._after: trio.Event | None = None
        self._fails: trio.Event | None = None
        return self

    async def commit(self, jobs: Iterable[Job], changes: Sequence[Change], *others: Any) -> None:
        self.commits.append((list(jobs), list(changes)))
        self._reached.set()
        if self._fails is not None:
            fails, self._fails = self._fails, None
            await fails.wait()
            raise StoreFailed("the store does not take it")
        if self._before is not None:
            await self._before.wait()
        await super().commit(*self.commits[-1], *others)
        self._written.set()
        if self._after is not None:
            await self._after.wait()

    @contextmanager
    def held_before(self) -> Iterator[None]:
        """Hold commits until the end of the block."""
        self._before, self._reached = trio.Event(), threading.Event()
        try:
            yield
        finally:
            self._before.set()
            self._before = None

    def fail_next(self) -> trio.Event:
        """Fail the next commit, as soon as this event is set."""
        self._fails, self._reached = trio.Event(), threading.Event()
        return self._fails

    @contextmanager
    def held_after(self) -> Iterator[None]:
        """Let commits be durable, but return only at the end of the block."""
        self._after, self._written = trio.Event(), threading.Event()
        try:
            yield
        finally:
            self._after.set()
            self._after = None

    async def reached(self) -> None:
        """Wait for a commit in the block, in a thread: some tests stop Trio's clock."""
        assert await trio.to_thread.run_sync(self._reached.wait, PATIENCE)

    async def written(self) -> None:
        """Wait until the commit is durable."""
        assert await trio.to_thread.run_sync(self._written.wait, PATIENCE)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedStore]:
    store = WatchedStore.open(tmp_path / "watched.sqlite")
    assert isinstance(store, WatchedStore)
    yield store.watch()
    store.close()


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table in ("changes", "jobs"):
            db.execute(f"CREATE TRIGGER full_{table} BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END")
        yield
        for table in ("changes", "jobs"):
            db.execute(f"DROP TRIGGER full_{table}")


async def next_of(reader: Reader, count: int) -> list[JobMessage]:
    with trio.fail_after(PATIENCE):
        return [await anext(reader) for _ in range(count)]


def types(messages: Iterable[JobMessage]) -> list[str]:
    return [type_of(message) for message in messages]


def errors(outcomes: Iterable[Job | ProgressdError]) -> list[type | None]:
    return [type(outcome) if isinstance(outcome, ProgressdError) else None for outcome in outcomes]


# From an event to its result


async def test_a_job_from_registration_to_end(spine: Spine) -> None:
    with spine.broadcaster.subscribe() as reader:
        outcomes = [await spine.ingest.submit_one(event) for event in (register(), start(), progress(42), complete())]
        messages = await next_of(reader, 5)
    assert [outcome.status for outcome in outcomes] == [QUEUED, PROCESSING, PROCESSING, COMPLETED]
    assert types(messages) == ["job_created", "status_change", "progress", "status_change", "completed"]
    assert await spine.store.jobs([ID]) == {ID: outcomes[-1]}


async def test_messages_have_growing_cursors_and_a_time(spine: Spine) -> None:
    with spine.broadcaster.subscribe() as reader:
        job = (await spine.submit(register(), start(), progress(1), complete()))[-1]
        messages = await next_of(reader, 5)
    assert isinstance(job, Job)
    offsets = [Cursor.parse(str(message.cursor)).offset for message in messages]
    assert offsets == list(range(offsets[0], offsets[0] + 5))
    assert job.created_offset == offsets[0]
    assert job.progress_offset == offsets[2]
    assert job.offset == offsets[-1] == spine.broadcaster.offset
    assert {message.time for message in messages} == {job.completed_at}


async def test_stored_changes_equal_sent_messages(spine: Spine) -> None:
    with spine.broadcaster.subscribe() as reader:
        await spine.submit(register(), start(), fail())
        messages = await next_of(reader, 4)
    changes = await spine.store.changes(0, spine.broadcaster.offset, 100)
    assert [encode(change.message) for change in changes] == [encode(message) for message in messages]
    assert [str(Cursor(spine.store.id, change.offset)) for change in changes] == [m.cursor for m in messages]


async def test_each_event_of_a_batch_has_its_own_outcome(spine: Spine) -> None:
    outcomes = await spine.submit(
        register(1),
        progress(1, 2),  # not registered
        complete(1),  # not started
        start(1),
        replace(start(1), job_id="not-a-uuid"),
        complete(1),
        complete(1),  # again
        progress(1, 1),  # too late
        fail(1),
    )
    assert errors(outcomes) == [None, NotFound, Conflict, None, InvalidInput, None, None, Conflict, Conflict]
    assert outcomes[6] == outcomes[5]
    assert spine.registry.known(ID) == outcomes[5]


async def test_an_id_in_upper_case_is_the_same_job(spine: Spine) -> None:
    loud = [replace(event, job_id=ID.upper()) for event in (register(), start(), progress(7), complete())]
    first = await spine.submit(loud[0])
    rest = await spine.submit(*loud[1:])
    assert {outcome.id for outcome in (*first, *rest) if isinstance(outcome, Job)} == {ID}
    assert errors(rest) == [None, None, None]
    assert set(await spine.store.jobs([ID, ID.upper()])) == {ID}


async def test_a_stored_finished_job_rejects_late_events(tmp_path: Path) -> None:
    async with started_again(tmp_path / "store.sqlite") as spine:
        await spine.submit(register(), fail())
    async with started_again(tmp_path / "store.sqlite") as spine:
        assert errors(await spine.submit(progress(1), start(), fail())) == [Conflict, Conflict, None]


async def test_a_preview_reaches_watchers_and_is_not_stored(spine: Spine) -> None:
    await spine.submit(register(), start())
    before = spine.registry.known(ID)
    with spine.broadcaster.subscribe(ID) as reader:
        assert await spine.submit(PREVIEW) == [before]
        assert types(await next_of(reader, 2)) == ["status_change", "page_preview"]
    page = await spine.history.page(f"job:{ID}", None, spine.broadcaster.offset)
    assert types(item.message for item in page.items) == ["status_change"]
    assert spine.registry.known(ID) == before


# Visibility


def of_team(team: str, number: int = 1) -> RegisterEvent:
    return replace(register(number), data=Registration("scan", labels={"team": team}))


def scans(job: Job) -> bool:
    return job.labels.get("team") == "scan"


async def test_events_for_invisible_jobs_are_not_found(spine: Spine) -> None:
    events = [progress(1), start(), cancel(), complete(), fail(), PREVIEW, BatchCancelEvent(ID), register(), submit()]
    unknown = await spine.submit(*events[:-2], may_see=scans)
    await spine.submit(of_team("print"))
    hidden = await spine.submit(*events, *(replace(event, job_id=ID.upper()) for event in events), may_see=scans)
    assert {(type(outcome), str(outcome)) for outcome in (*unknown, *hidden)} == {(NotFound, f"no job {ID}")}
    assert (await spine.registry.get(ID)).status is QUEUED
    assert errors(await spine.submit(of_team("scan", 2), progress(1, 2), cancel(2), may_see=scans)) == [None] * 3


async def test_visibility_applies_to_stored_jobs(tmp_path: Path) -> None:
    async with started_again(tmp_path / "store.sqlite") as spine:
        await spine.submit(of_team("print"), fail())
    async with started_again(tmp_path / "store.sqlite") as spine:
        assert errors(await spine.submit(fail(), may_see=scans)) == [NotFound]
        assert errors(await spine.submit(fail())) == [None]


async def test_visibility_applies_within_one_batch(watched: WatchedStore) -> None:
    """Events before and after its registration, in the queue or the same batch."""
    outcomes: list[Job | ProgressdError] = []

    async def meddle() -> None:
        outcomes.extend(await spine.submit(cancel(), may_see=scans))

    async with running(watched) as spine:
        async with trio.open_nursery() as nursery:
            with watched.held_before():
                nursery.start_soon(meddle)  # before the job exists
                nursery.start_soon(spine.submit, register(9))
                await watched.reached()
                nursery.start_soon(spine.submit, of_team("print"))
                await settled()
                nursery.start_soon(meddle)
                await settled()
        assert len(watched.commits) == 2
        assert errors(outcomes) == [NotFound, NotFound]
        assert (await spine.registry.get(ID)).status is QUEUED


async def test_deletion_spares_a_later_job_with_the_same_id(spine: Spine) -> None:
    [_, first] = await spine.submit(of_team("scan"), cancel())
    assert isinstance(first, Job)
    assert await spine.ingest.delete(first) == first
    [_, second] = await spine.submit(of_team("print"), cancel())
    with pytest.raises(NotFound, match=ID):
        await spine.ingest.delete(first)
    assert await spine.store.jobs([ID]) == {ID: second}


# Durable first


async def test_changes_are_durable_before_anyone_hears_of_them(watched: WatchedStore) -> None:
    async with running(watched) as spine, trio.open_nursery() as nursery:
        reader = spine.broadcaster.subscribe()
        heard: list[JobMessage] = []
        answers: list[Job | ProgressdError] = []

        async def listen() -> None:
            heard.extend([await anext(reader), await anext(reader)])

        async def hand_in() -> None:
            answers.extend(await spine.submit(register(), start()))

        with watched.held_after():
            nursery.start_soon(listen)
            with watched.held_before():
                nursery.start_soon(hand_in)
                await watched.reached()
                await settled()
                assert (heard, answers, spine.registry.known(ID)) == ([], [], None)
            await watched.written()
            await settled()
            assert (heard, answers, spine.registry.known(ID)) == ([], [], None)
        await settled()
        assert types(heard) == ["job_created", "status_change"]
        assert spine.registry.known(ID) == answers[-1]


async def test_queued_events_share_a_commit(
    watched: WatchedStore,
) -> None:
    answers: dict[int, list[Job | ProgressdError]] = {}
    async with running(watched) as spine:

        async def hand_in(number: int) -> None:
            answers[number] = await spine.submit(register(number), start(number))

        async with trio.open_nursery() as nursery:
            with watched.held_before():
                nursery.start_soon(hand_in, 1)
                await watched.reached()
                for number in range(2, 11):
                    nursery.start_soon(hand_in, number)
                await settled()
        assert [len(changes) for _, changes in watched.commits] == [2, 18]
    for number in range(1, 11):
        assert [outcome.id for outcome in answers[number] if isinstance(outcome, Job)] == [job_id(number)] * 2


async def test_a_full_queue_blocks_producers_and_loses_nothing(watched: WatchedStore) -> None:
    count = MAX_EVENTS + QUEUE_CAPACITY + 100
    async with running(watched) as spine:
        async with trio.open_nursery() as nursery:
            with watched.held_before():
                nursery.start_soon(spine.submit, register(0))
                await watched.reached()
                for number in range(1, count):
                    nursery.start_soon(spine.submit, register(number))
                await settled()
                assert spine.ingest.queued == QUEUE_CAPACITY
        assert len(spine.registry.unfinished) == count


async def test_events_are_published_in_order(spine: Spine) -> None:
    await spine.submit(*(register(number) for number in range(1, 4)))
    with spine.broadcaster.subscribe(job_id(1)) as one, spine.broadcaster.subscribe() as all_jobs:
        await spine.submit(*(progress(step, number) for step in range(100) for number in (1, 2, 3)), complete(1))
        await spine.submit(fail(2), cancel(3))
        with trio.fail_after(PATIENCE):
            assert types([message async for message in one])[-3:] == ["progress", "status_change", "completed"]
        messages = await next_of(all_jobs, 3 + 3 + 3 + 2 + 2 + 1)
    offsets = [Cursor.parse(str(message.cursor)).offset for message in messages]
    assert offsets == sorted(set(offsets))


# While an entry is appended


async def test_progress_does_not_wait_for_a_commit(watched: WatchedStore) -> None:
    """The first commits leave too few offsets for progress, so it waits. Later ones leave enough."""
    passed = list[int]()  # the progress published during each commit
    async with running(watched) as spine:
        await spine.submit(register(1), start(1))
        reader = spine.broadcaster.subscribe(after=spine.broadcaster.offset)
        for number in range(2, 7):
            async with trio.open_nursery() as nursery:
                with watched.held_before():
                    nursery.start_soon(spine.submit, register(number))
                    await watched.reached()
                    before = spine.broadcaster.offset
                    for step in range(10):
                        nursery.start_soon(spine.submit, progress(step, 1))
                        await settled()
                    passed.append(spine.broadcaster.offset - before)
        messages = await next_of(reader, 6)
    assert passed[0] == 0
    assert passed == sorted(passed)
    assert passed[-1] == 10
    offsets = [Cursor.parse(str(message.cursor)).offset for message in messages]
    assert offsets == sorted(set(offsets))
    assert types(messages).count("job_created") == 5


async def test_events_of_a_job_in_a_commit_wait_for_it(watched: WatchedStore) -> None:
    outcomes = list[Outcome]()

    async def hand_in(*events: Event) -> None:
        outcomes.extend(await spine.submit(*events))

    async with running(watched) as spine, trio.open_nursery() as nursery:
        await spine.submit(register(), start())
        with watched.held_before():
            nursery.start_soon(hand_in, complete())
            await watched.reached()
            nursery.start_soon(hand_in, progress(7), register(2), progress(8))
            await settled()
            assert outcomes == []
        with trio.fail_after(PATIENCE):
            while len(outcomes) < 4:
                await trio.lowlevel.checkpoint()
    assert errors(outcomes) == [None, Conflict, None, Conflict]


async def test_a_repeated_end_is_accepted_when_its_job_leaves_the_memory_meanwhile(watched: WatchedStore) -> None:
    outcomes = dict[int, list[Outcome]]()

    async def hand_in(number: int, *events: Event) -> None:
        outcomes[number] = await spine.submit(*events)

    async with running(watched, max_finished=1) as spine, trio.open_nursery() as nursery:
        await spine.submit(register(1), start(1), register(2), start(2))
        await spine.submit(complete(1))
        with watched.held_before():
            nursery.start_soon(hand_in, 2, complete(2))
            await watched.reached()
            nursery.start_soon(hand_in, 1, complete(1))
            nursery.start_soon(hand_in, 3, register(3))
            await settled()
    assert errors(outcomes[1] + outcomes[2] + outcomes[3]) == [None, None, None]


async def test_a_burst_during_a_commit_leaves_no_lasting_gap(watched: WatchedStore) -> None:
    async with running(watched) as spine:
        async with trio.open_nursery() as nursery:
            with watched.held_before():
                nursery.start_soon(spine.submit, register(1))
                await watched.reached()
                nursery.start_soon(spine.submit, *(register(number) for number in range(2, 300)))
                await settled()
        before = spine.broadcaster.offset
        for number in range(300, 320):
            await spine.submit(register(number))
        assert spine.broadcaster.offset - before < SNAPSHOT_MAX_AGE
        before = spine.broadcaster.offset
        await spine.submit(register(320))
        assert spine.broadcaster.offset - before < 10


async def test_a_failed_entry_does_not_affect_the_next(watched: WatchedStore) -> None:
    outcomes = dict[int, list[Outcome]]()

    async def hand_in(number: int) -> None:
        outcomes[number] = await spine.submit(register(number), start(number))

    async with running(watched) as spine, trio.open_nursery() as nursery:
        fails = watched.fail_next()
        nursery.start_soon(hand_in, 1)
        await watched.reached()
        nursery.start_soon(hand_in, 2)
        await settled()
        fails.set()
    assert errors(outcomes[1]) == [StoreFailed, StoreFailed]
    assert errors(outcomes[2]) == [None, None]


# When the store fails


async def test_a_rejected_commit_changes_nothing(spine: Spine, tmp_path: Path) -> None:
    await spine.submit(register(1), start(1))
    before = spine.registry.known(ID)
    with spine.broadcaster.subscribe() as reader:
        await next_of(reader, 2)
        with disk_full(tmp_path / "store.sqlite"):
            outcomes = await spine.submit(register(2), complete(1), progress(5))
            assert errors(outcomes) == [StoreFailed] * 3
            with pytest.raises(StoreFailed):
                await spine.ingest.submit_one(complete(1))
        assert spine.registry.known(ID) is before
        assert spine.registry.known(job_id(2)) is None
        assert errors(await spine.submit(complete(1), register(2))) == [None, None]
        messages = await next_of(reader, 3)
    assert types(messages) == ["status_change", "completed", "job_created"]
    offsets = [Cursor.parse(str(message.cursor)).offset for message in messages]
    assert [change.offset for change in await spine.store.changes(offsets[0] - 1, offsets[-1], 10)] == offsets


@contextmanager
def commits_undecided(store: SQLiteStore) -> Iterator[None]:
    """Each commit fails at its COMMIT, so that nobody knows whether the store has it."""

    def authorize(action: int, what: str | None, *_: object) -> int:
        refused = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
        return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

    store._writer.set_authorizer(authorize)
    yield
    store._writer.set_authorizer(None)


async def test_progress_keeps_its_interval_while_a_commit_is_undecided(spine: Spine, nursery: trio.Nursery) -> None:
    outbox = Collected()
    await spine.submit(register(), start())
    throttled = ThrottledOutbox(outbox, 60.0, nursery.start_soon)
    subscription = spine.broadcaster.join(job_topic(ID), throttled, spine.broadcaster.offset)
    while await subscription.next_replay() is not None:
        pass
    await spine.submit(progress(1), progress(2))
    with commits_undecided(spine.store):
        assert errors(await spine.submit(complete())) == [StoreFailed]
        assert errors([*await spine.submit(progress(3)), *await spine.submit(progress(4))]) == [None, None]
    assert errors(await spine.submit(complete())) == [None]
    await settled()
    subscription.leave()
    messages = outbox.messages
    assert types(messages) == ["progress", "progress", "status_change", "completed"]
    assert [message.data.current_step for message in messages if isinstance(message, Progress)] == [1, 4]
    assert [message.cursor is UNSET for message in messages] == [False, True, False, False]


async def test_recovery_is_reported_to_a_late_waiter(spine: Spine, tmp_path: Path) -> None:
    await spine.submit(register(1), start(1))
    with disk_full(tmp_path / "store.sqlite"):
        [refused] = await spine.submit(complete(1))
    assert isinstance(refused, StoreFailed)
    assert errors(await spine.submit(complete(1))) == [None]
    with trio.fail_after(PATIENCE):
        assert await spine.health.wait_changed(refused) is None


async def test_out_of_memory_in_a_commit_rejects_events(spine: Spine) -> None:
    await spine.submit(register(1), start(1))

    def out_of_memory() -> None:
        raise MemoryError

    writer = spine.store._writer
    writer.create_function("out_of_memory", 0, out_of_memory)
    writer.execute("CREATE TEMP TRIGGER greedy AFTER INSERT ON changes BEGIN SELECT out_of_memory(); END")
    [refused] = await spine.submit(complete(1))
    assert str(refused) == "cannot use the database: no memory left"
    assert not writer.in_transaction
    writer.execute("DROP TRIGGER greedy")
    assert errors(await spine.submit(complete(1))) == [None]


async def test_out_of_memory_in_a_decision_rejects_events(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("progressd.engine.transaction.apply", out_of_memory)
        [refused] = await spine.submit(register(1))
    assert str(refused) == "the daemon has no memory left for this"
    assert errors(await spine.submit(register(1))) == [None]


async def test_offsets_of_a_failed_commit_are_not_reused(spine: Spine, tmp_path: Path) -> None:
    [first] = await spine.submit(register(1))
    with disk_full(tmp_path / "store.sqlite"):
        await spine.submit(register(2), register(3))
    [last] = await spine.submit(register(4))
    assert isinstance(first, Job)
    assert isinstance(last, Job)
    assert last.offset > first.offset + 2


async def test_offsets_are_reserved_before_use(store: SQLiteStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)) as db:
        async with running(store) as spine:
            db.execute("CREATE TRIGGER stuck BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'stuck'); END")
            assert errors(await spine.submit(register())) == [StoreFailed]
            db.execute("DROP TRIGGER stuck")
            [job] = await spine.submit(register())
            assert isinstance(job, Job)
            [(reserved,)] = db.execute("SELECT value FROM meta WHERE key = 'reserved'")
            assert reserved > job.offset


@pytest.mark.parametrize("crash", [True, False], ids=["crashed", "stopped"])
async def test_the_next_daemon_gives_out_larger_offsets(store: SQLiteStore, tmp_path: Path, crash: bool) -> None:
    async with running(store, reserve_ahead=3) as spine:
        for number in range(1, 20):
            await spine.submit(register(number), start(number))
        last = spine.broadcaster.offset
        if crash:
            following = SQLiteStore.open(tmp_path / "store.sqlite")
            assert following.first_offset > last
            following.close()
    async with started_again(tmp_path / "store.sqlite") as spine:
        [job] = await spine.submit(register(50))
        assert isinstance(job, Job)
        assert job.offset > last


# Progress is written behind


async def test_progress_alone_is_published_and_not_committed(watched: WatchedStore) -> None:
    async with running(watched) as spine:
        await spine.submit(register(), start())
        commits = len(watched.commits)
        await spine.submit(progress(1))
        assert len(watched.commits) == commits
        with spine.broadcaster.subscribe(ID) as reader:
            assert types(await next_of(reader, 2)) == ["status_change", "progress"]


async def test_newest_progress_is_stored_within_a_second(
    watched: WatchedStore, mock_clock: trio.testing.MockClock
) -> None:
    async with running(watched) as spine:
        await spine.submit(register(1), register(2), start(1), start(2))
        jobs = await spine.submit(progress(1, 1), progress(2, 1), progress(3, 2))
        with watched.held_after():
            await settled()  # the write-behind waits
            mock_clock.jump(1)
            await watched.written()
        assert await watched.jobs([job_id(1), job_id(2)]) == {job_id(1): jobs[1], job_id(2): jobs[2]}
        assert watched.commits[-1][1] == []
        [job] = await spine.submit(progress(4, 1))
        with watched.held_after():
            await settled()
            mock_clock.jump(1)
            await watched.written()
        assert await watched.jobs([job_id(1)]) == {job_id(1): job}
        assert [changed.id for changed in watched.commits[-1][0]] == [job_id(1)]
        await settled()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_events_do_not_wait_for_written_progress(
    watched: WatchedStore, mock_clock: trio.testing.MockClock
) -> None:
    async with running(watched) as spine:
        await spine.submit(register(), start())
        await spine.submit(progress(1))
        await settled()
        with watched.held_before():
            mock_clock.jump(1)
            await watched.reached()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spine.submit, progress(2))
                await settled()
                known = spine.registry.known(ID)
                nursery.cancel_scope.cancel()
        assert known is not None
        assert known.progress.current_step == 2
    assert await watched.jobs([ID]) == {ID: known}


async def test_a_failed_write_is_repeated_with_newer_progress(
    watched: WatchedStore, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with running(watched) as spine:
        await spine.submit(register(1), start(1), register(2), start(2))
        await spine.submit(progress(1, 1), progress(1, 2))
        await settled()
        with disk_full(tmp_path / "watched.sqlite"):
            with watched.held_before():
                mock_clock.jump(1)
                await watched.reached()
                [newest] = await spine.submit(progress(2, 2))
            await spine.health.wait_changed(None)
        assert spine.health.failure is not None
        with watched.held_after():
            await settled()
            mock_clock.jump(1)
            await watched.written()
        stored = await watched.jobs([job_id(1), job_id(2)])
        assert [stored[job_id(number)].progress.current_step for number in (1, 2)] == [1, 2]
        assert stored[job_id(2)] == newest


async def test_a_failed_progress_write_keeps_the_end(watched: WatchedStore, mock_clock: trio.testing.MockClock) -> None:
    async with running(watched) as spine:
        await spine.submit(register(), start())
        await spine.submit(progress(1))
        await settled()
        fails = watched.fail_next()
        mock_clock.jump(1)
        await watched.reached()
        async with trio.open_nursery() as nursery:
            with watched.held_after():
                nursery.start_soon(spine.submit, complete())
                await watched.written()
                fails.set()
                await spine.health.wait_changed(None)
    assert (await watched.jobs([ID]))[ID].status is COMPLETED


async def test_unsaved_progress_is_written_with_the_next_commit(spine: Spine, tmp_path: Path) -> None:
    await spine.submit(register(1), start(1))
    [moved] = await spine.submit(progress(7, 1))
    with disk_full(tmp_path / "store.sqlite"):
        assert errors(await spine.submit(register(2))) == [StoreFailed]
    await spine.submit(register(3))
    assert await spine.store.jobs([job_id(1)]) == {job_id(1): moved}


# The end


async def test_a_stop_writes_the_newest_progress(store: SQLiteStore) -> None:
    async with running(store) as spine:
        await spine.submit(register(), start())
        [moved] = await spine.submit(progress(7))
    assert await store.jobs([ID]) == {ID: moved}


async def test_submitting_after_a_stop_raises(store: SQLiteStore) -> None:
    async with running(store) as spine:
        await spine.submit(register())
    with trio.fail_after(PATIENCE), pytest.raises(Unavailable, match="stopping"):
        await spine.submit(start())


async def test_every_producer_is_answered_during_a_stop(watched: WatchedStore) -> None:
    """Producers in the batch, in the queue, waiting for the queue, and too late."""
    count = QUEUE_CAPACITY + 50
    answered: list[int] = []

    async def hand_in(spine: Spine, number: int) -> None:
        for _ in range(2):
            try:
                assert len(await spine.submit(*[register(number)] * 100)) == 100
            except Unavailable:
                break
        answered.append(number)

    async with trio.open_nursery() as producers:
        async with trio.open_nursery() as tasks:
            spine = Spine(watched, tasks)
            tasks.start_soon(spine.ingest.run)
            with watched.held_before():
                for number in range(count):
                    producers.start_soon(hand_in, spine, number)
                await watched.reached()
                tasks.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await settled()
                    producers.start_soon(hand_in, spine, count)
                    await settled()
        producers.cancel_scope.deadline = trio.current_time() + PATIENCE
    assert sorted(answered) == list(range(count + 1))


async def test_a_stop_finishes_the_current_commit(watched: WatchedStore) -> None:
    async with trio.open_nursery() as producers, trio.open_nursery() as tasks:
        spine = Spine(watched, tasks)
        tasks.start_soon(spine.ingest.run)
        with watched.held_before():
            producers.start_soon(spine.submit, register(), start())
            await watched.reached()
            tasks.cancel_scope.cancel()
            await settled()
    assert [job.status for job in (await watched.jobs([ID])).values()] == [PROCESSING]


async def test_a_cancelled_producer_does_not_revoke_its_event(watched: WatchedStore) -> None:
    async with running(watched) as spine:
        with watched.held_before():
            async with trio.open_nursery() as producer:
                producer.start_soon(spine.submit, register())
                await watched.reached()
                producer.cancel_scope.cancel()
        [job] = await spine.submit(start())
        assert isinstance(job, Job)
        assert job.status is PROCESSING


# Permissions


def known_before(cursor: str) -> RegisterEvent:
    """Return a registration by a producer that has a cursor of the job."""
    return RegisterEvent(ID, Registration("scan"), cursor)


async def test_a_deleted_job_is_not_registered_again(spine: Spine) -> None:
    job = await spine.ingest.submit_one(register())
    cursor = str(Cursor(spine.store.id, job.offset))
    assert await spine.ingest.submit_one(known_before(cursor)) is job
    await spine.ingest.delete(await spine.ingest.submit_one(cancel()))
    [refusal] = await spine.submit(known_before(cursor))
    assert isinstance(refusal, NotFound)
    assert str(refusal) == f"no job {ID}"


async def test_a_job_of_another_store_is_registered_again(spine: Spine) -> None:
    job = await spine.ingest.submit_one(known_before("another-7"))
    assert (job.id, job.status) == (ID, QUEUED)


async def test_a_registration_with_an_invalid_cursor_is_rejected(spine: Spine) -> None:
    [refusal] = await spine.submit(known_before("yesterday"))
    assert isinstance(refusal, InvalidInput)


@pytest.mark.parametrize("work", [Registry.keep, log_change])
async def test_a_large_transaction_is_logged_in_parts(spine: Spine, work: Callable[..., object]) -> None:
    numbers = range(1, 10 * STEP)
    await spine.submit(*map(register, numbers), *map(start, numbers))
    with counted(work) as calls:
        await spine.submit(*map(complete, numbers))
    assert calls.total >= len(numbers)
    assert calls.most <= STEP
    assert len(spine.registry.unfinished) == 0
