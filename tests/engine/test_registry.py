"""The registry: jobs in memory, their messages, the queue of the runner, and waiting tasks."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from progressd.broadcast.envelope import Envelope
from progressd.core.events import Priority
from progressd.core.job import Job
from progressd.core.messages import JobMessage, JobStatus
from progressd.engine.registry import Recent, Registry, RunQueue
from progressd.store.base import Change
from progressd.store.sqlite import SQLiteStore
from support.samples import NOW, created, job, job_id, moved, started, succeeded
from support.waiting import PATIENCE

QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus


@pytest.fixture
def registry(store: SQLiteStore) -> Registry:
    return Registry(store)


async def test_load_reads_unfinished_jobs_oldest_first(store: SQLiteStore, registry: Registry) -> None:
    jobs = [job(3), job(1, PROCESSING), job(2, COMPLETED, completed_at=NOW), job(4, CANCELLED, completed_at=NOW)]
    await store.commit(jobs, [])
    await registry.load()
    assert list(registry.unfinished) == [job_id(1), job_id(3)]
    assert registry.known(job_id(1)) == job(1, PROCESSING)
    assert registry.known(job_id(2)) is None


async def test_a_finished_job_is_found_in_the_store(store: SQLiteStore, registry: Registry) -> None:
    old = job(1, FAILED, completed_at=NOW, error="no paper")
    await store.commit([old], [])
    assert await registry.get(job_id(1)) == old
    registry.keep(job(2))
    assert await registry.find([job_id(1), job_id(2), job_id(3)]) == {job_id(1): old, job_id(2): job(2)}


async def test_memory_overrides_the_store(store: SQLiteStore, registry: Registry) -> None:
    await store.commit([job(1)], [])
    moving = job(1, PROCESSING)
    registry.keep(moving)
    assert await registry.get(job_id(1)) == moving


def test_only_recently_finished_jobs_stay_in_memory(store: SQLiteStore) -> None:
    registry = Registry(store, max_finished=2)
    for number in (1, 2, 3):
        registry.keep(job(number))
        registry.keep(job(number, COMPLETED))
    assert registry.unfinished == {}
    assert [registry.known(job_id(number)) for number in (1, 2, 3)] == [None, job(2, COMPLETED), job(3, COMPLETED)]


def test_the_memory_of_finished_jobs_is_limited(registry: Registry) -> None:
    small, large = {"a": "x" * 60_000}, {"a": [[]] * 20_000}
    for options, fewest, most in ((small, 100, 140), (large, 10, 20)):
        for number in range(1, 200):
            registry.keep(job(number, COMPLETED, offset=number, options=options))
        there = [number for number in range(1, 200) if registry.known(job_id(number)) is not None]
        assert there == list(range(200 - len(there), 200))
        assert fewest < len(there) < most
        registry.forget([job_id(number) for number in there])
    for number in range(1, 1200):
        registry.keep(job(number, COMPLETED))
    assert [registry.known(job_id(number)) is None for number in (199, 200)] == [True, False]


def test_a_deleted_job_is_forgotten(registry: Registry) -> None:
    registry.keep(job(1, COMPLETED))
    registry.forget([job_id(1), job_id(2)])
    assert registry.known(job_id(1)) is None


def seen(registry: Registry, number: int = 1, after: int = 0, upto: int = 1000) -> list[int] | None:
    """Return the offsets of the messages of a job."""
    trail = registry.messages_of(job_id(number))
    return None if trail is None else [published.offset for published in trail.between(after, upto)]


def published(offset: int, *messages: JobMessage) -> list[Envelope]:
    return [Envelope(offset + place, message) for place, message in enumerate(messages)]


def test_a_job_log_is_in_order(registry: Registry) -> None:
    registry.keep(job(1), published(1, created()))
    registry.keep(job(1, PROCESSING), published(2, started(), moved(1)))
    registry.keep(job(1, PROCESSING), published(4, moved(2)))
    assert seen(registry) == [1, 2, 4]
    registry.keep(job(1, COMPLETED, offset=6), published(5, *succeeded()))
    assert seen(registry) == [1, 2, 4, 5, 6]
    assert seen(registry, after=2, upto=5) == [4, 5]


def test_a_requeued_job_loses_its_progress(registry: Registry) -> None:
    registry.keep(job(1, PROCESSING), published(1, started(), moved(1)))
    registry.keep(job(1), published(3, started()))
    assert seen(registry) == [1, 3]


async def test_load_reads_messages_of_unfinished_jobs(store: SQLiteStore, registry: Registry) -> None:
    await store.reserve(100)
    moving = job(1, PROCESSING, progress_offset=5, progress=moved(7).data, progress_at=NOW)
    ended = job(2, COMPLETED, completed_at=NOW)
    changes = [Change(1, created()), Change(2, created(job_id(2))), Change(3, started()), Change(4, started(job_id(2)))]
    await store.commit([moving, ended], [*changes, *(Change(6 + n, end) for n, end in enumerate(succeeded(job_id(2))))])
    reopened = Registry(store)
    store.first_offset = 100  # as after opening the file again
    await reopened.load()
    assert seen(reopened) == [1, 3, 5]
    trail = reopened.messages_of(job_id(1))
    assert trail is not None
    assert trail.progress is not None
    assert trail.progress.message == msgspec.structs.replace(moved(7), cursor=f"{store.id}-5", time=NOW)
    assert seen(reopened, 2) is None
    assert reopened.forgotten == 99


def test_a_forgotten_job_leaves_nothing(store: SQLiteStore) -> None:
    registry = Registry(store, max_finished=1)
    registry.keep(job(1, COMPLETED, offset=2), published(1, *succeeded()))
    assert (seen(registry), registry.forgotten) == ([1, 2], 0)
    registry.keep(job(2, COMPLETED, offset=4), published(3, *succeeded(job_id(2))))
    assert (seen(registry), registry.forgotten) == (None, 2)
    registry.forget([job_id(2)])
    assert (seen(registry, 2), registry.forgotten) == (None, 4)


def test_unfinished_at_says_which_jobs_were_unfinished(registry: Registry) -> None:
    for number, offset in ((1, 10), (2, 20), (3, 30)):
        registry.keep(job(number, COMPLETED, offset=offset))
    registry.keep(job(4, PROCESSING, offset=25))
    registry.keep(job(5, offset=40))
    for offset, numbers in ((30, {4, 5}), (29, {3, 4, 5}), (10, {2, 3, 4, 5}), (9, {1, 2, 3, 4, 5})):
        assert {number for number in range(1, 7) if registry.unfinished_at(job_id(number), offset)} == numbers


@pytest.mark.parametrize("end", [COMPLETED, FAILED, CANCELLED])
async def test_the_end_of_a_job_wakes_all_its_waiters(registry: Registry, end: JobStatus) -> None:
    registry.keep(job(1))
    registry.keep(job(2))
    woken = []

    async def wait(number: int) -> None:
        await registry.wait_finished(job_id(number))
        woken.append(number)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in (1, 1, 2):
                nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
            registry.keep(job(1, PROCESSING))
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            registry.keep(job(1, end))
            await trio.testing.wait_all_tasks_blocked()
            assert woken == [1, 1]
            registry.keep(job(2, end))


def piped(number: int, status: JobStatus = QUEUED, **fields: object) -> Job:
    return job(number, status, pipeline="pdf", **fields)


async def next_numbers(registry: Registry) -> list[int]:
    """Return the jobs that the runner gets without waiting."""
    numbers = []
    with trio.move_on_after(0):
        while True:
            numbers.append((await registry.next_queued()).created_offset)
    return numbers


async def test_a_job_is_queued_once_per_attempt(registry: Registry) -> None:
    registry.keep(piped(1))
    registry.keep(piped(1, progress=moved(1).data))
    registry.keep(piped(2))
    assert await next_numbers(registry) == [1, 2]
    registry.keep(piped(2, PROCESSING))
    registry.keep(piped(1, PROCESSING))
    registry.keep(piped(2))
    registry.keep(piped(1))
    assert await next_numbers(registry) == [1, 2]


async def test_a_reused_job_id_is_queued_once(registry: Registry) -> None:
    registry.keep(piped(1))
    registry.keep(piped(1, CANCELLED))
    registry.forget([job_id(1)])
    registry.keep(piped(1, created_offset=9))
    assert await next_numbers(registry) == [9]


async def test_load_queues_queued_jobs(store: SQLiteStore, registry: Registry) -> None:
    await store.commit([piped(2), piped(1), piped(3, PROCESSING), job(4)], [])
    await registry.load()
    assert await next_numbers(registry) == [1, 2]


async def test_a_queued_job_wakes_the_runner(registry: Registry) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.next_queued)
            await trio.testing.wait_all_tasks_blocked()
            registry.keep(job(1))
            registry.keep(piped(2, PROCESSING))
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            registry.keep(piped(3))


def test_registration_cost_does_not_depend_on_unfinished_jobs(registry: Registry) -> None:
    def steps(number: int) -> int:
        """Count instructions to register a job for the runner and hand it over."""
        count = 0

        def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
            nonlocal count
            count += 1
            return trace

        async def register() -> None:
            registry.keep(piped(number), published(number, created()))
            await registry.next_queued()

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with pytest.raises(StopIteration):
                register().send(None)
        finally:
            sys.settrace(before)
        return count

    alone = steps(1)
    for number in range(2, 3000):
        registry.keep(job(number))
        registry.keep(piped(number + 10_000))
    assert steps(3000) < 1.2 * alone


# Recent messages against a sorted list

OFFSETS = st.integers(1, 3000)


@given(st.lists(st.tuples(st.booleans(), OFFSETS), max_size=200), OFFSETS, OFFSETS, st.integers(1, 50))
def test_messages_between_offsets_are_in_order(steps: list[tuple[bool, int]], after: int, upto: int, most: int) -> None:
    recent, there = Recent(), dict[int, Envelope]()
    for add, offset in steps:
        if add and offset not in there:
            there[offset] = Envelope(offset, moved(1))
            recent.add(there[offset])
        elif not add and offset in there:
            recent.remove(there.pop(offset))
    expected = [there[offset] for offset in sorted(there) if after < offset <= upto]
    assert recent.between(after, upto, most) == expected[:most]


def test_removed_messages_leave_nothing() -> None:
    recent, items = Recent(), [Envelope(offset, moved(1)) for offset in range(1, 5000)]
    for item in items:
        recent.add(item)
    for item in items:
        recent.remove(item)
    assert recent._blocks == {}
    assert recent._numbers == []


# The queue of the runner

LOW, NORMAL, HIGH = Priority

OWNERS = st.sampled_from([None, "key:a", "address:192.0.2.1"])
PRIORITIES = st.sampled_from([NORMAL, NORMAL, NORMAL, HIGH])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), OWNERS, PRIORITIES),
        st.tuples(st.sampled_from(["start", "start", "start", "cancel", "requeue"])),
    ),
    min_size=10,
    max_size=80,
)


def owned(number: int, owner: str | None, priority: Priority = NORMAL) -> Job:
    return job(number, pipeline="pdf", owner=owner, priority=priority)


def order(jobs: Iterable[Job]) -> list[int]:
    """Return the numbers of the jobs in the order in which they start."""
    waiting = {one.id: one for one in jobs}
    queue = RunQueue()
    for one in waiting.values():
        queue.add(one)
    expected = [one.created_offset for one in queue.order(waiting.get, len(waiting))]
    started = []
    while (taken := queue.take(waiting.get)) is not None:
        started.append(taken.created_offset)
    assert started == expected
    return started


def test_owners_take_turns() -> None:
    jobs = [owned(1, "a"), owned(2, "a"), owned(3, "a"), owned(4, "b"), owned(5, "c"), owned(6, "b")]
    assert order(jobs) == [1, 4, 5, 2, 6, 3]


@given(ACTIONS)
def test_no_owner_waits_for_two_jobs_of_another(actions: list[tuple[object, ...]]) -> None:
    queue, waiting, started = RunQueue(), dict[str, Job](), list[Job]()
    passed = Counter[tuple[Priority, str | None, str | None]]()  # starts of another owner since this one waits
    for number, (name, *arguments) in enumerate(actions):
        if name == "submit":
            new = owned(number, *arguments)  # type: ignore[arg-type]
            waiting[new.id] = new
            queue.add(new)
        elif name == "cancel" and waiting:
            del waiting[next(reversed(waiting))]
        elif name == "requeue" and started:
            again = started.pop()
            waiting[again.id] = again
            queue.add(again)
        elif name == "start":
            expected = queue.order(waiting.get, len(actions))
            assert sorted(one.id for one in expected) == sorted(waiting)
            taken = queue.take(waiting.get)
            assert (taken is None) == (not waiting)
            assert taken is None or taken is expected[0]
            if taken is None:
                continue
            assert taken.priority.rank == max(one.priority.rank for one in waiting.values())
            same = [one for one in waiting.values() if one.priority is taken.priority]
            assert taken == min((one for one in same if one.owner == taken.owner), key=lambda one: one.created_offset)
            del waiting[taken.id]
            started.append(taken)
            for key in [key for key in passed if key[0] is taken.priority and key[1] == taken.owner]:
                del passed[key]
            for owner in {one.owner for one in same} - {taken.owner}:
                passed[taken.priority, owner, taken.owner] += 1
        present = {(one.priority, one.owner) for one in waiting.values()}
        for key in [key for key in passed if key[:2] not in present]:
            del passed[key]
        assert all(count <= 1 for count in passed.values()), passed
