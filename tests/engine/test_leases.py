"""Leases through ingest, on a real store and a stopped clock."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from progressd.broadcast.broadcaster import Reader
from progressd.core.errors import Conflict
from progressd.core.events import CompletedEvent, RegisterEvent, Registration
from progressd.core.job import Job
from progressd.core.messages import JobMessage, JobStatus, Progress, StatusChange
from progressd.store.sqlite import SQLiteStore
from support.daemon import PATIENCE, CommitGate
from support.samples import ID, job_id
from support.spine import Spine, complete, progress, register, running, start, started_again
from trio.testing import MockClock, wait_all_tasks_blocked

LEASE = 30.0


def leased(number: int = 1, seconds: float = LEASE) -> RegisterEvent:
    return replace(register(number), data=Registration("scan", lease_seconds=seconds))


@pytest.fixture
async def spine(mock_clock: MockClock, store: SQLiteStore) -> AsyncIterator[Spine]:
    async with running(store) as spine:
        yield spine


async def until(condition: Callable[[], object]) -> None:
    """Wait while the clock stands still."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "this took too long"
        await wait_all_tasks_blocked()


def now(spine: Spine, number: int = 1) -> Job:
    job = spine.registry.known(job_id(number))
    assert job is not None
    return job


def stalled(spine: Spine) -> bool:
    return now(spine).progress.stalled


async def messages(reader: Reader, count: int) -> list[JobMessage]:
    return [await anext(reader) for _ in range(count)]


async def test_watchers_see_a_silent_job_stall_then_fail(spine: Spine, mock_clock: MockClock) -> None:
    await spine.submit(leased(), progress(5))
    with spine.broadcaster.subscribe(ID) as reader:
        await messages(reader, 2)
        mock_clock.jump(LEASE)
        [silence] = await messages(reader, 1)
        assert isinstance(silence, Progress)
        assert (silence.data.stalled, silence.data.current_step) == (True, 5)
        mock_clock.jump(2 * LEASE - 0.1)
        await wait_all_tasks_blocked()
        assert now(spine).status is JobStatus.PROCESSING
        mock_clock.jump(0.1)
        [change, error] = await messages(reader, 2)
        assert isinstance(change, StatusChange)
        assert change.data.new_status is JobStatus.FAILED
        assert error.data.message == "producer lost"  # type: ignore[union-attr]
    assert (await spine.store.jobs([ID]))[ID] == now(spine)


async def test_a_returning_producer_resumes_the_job(spine: Spine, mock_clock: MockClock) -> None:
    await spine.submit(leased(), progress(5))
    mock_clock.jump(LEASE)
    await until(lambda: stalled(spine))
    mock_clock.jump(1.9 * LEASE)
    await spine.submit(progress(6))
    assert not stalled(spine)
    mock_clock.jump(0.9 * LEASE)
    await wait_all_tasks_blocked()
    assert not stalled(spine)
    [outcome] = await spine.submit(complete())
    assert isinstance(outcome, Job)
    mock_clock.jump(100 * LEASE)
    await wait_all_tasks_blocked()
    assert now(spine).status is JobStatus.COMPLETED


async def test_a_rejected_event_renews_the_lease(spine: Spine, mock_clock: MockClock) -> None:
    await spine.submit(leased())
    mock_clock.jump(0.9 * LEASE)
    [outcome] = await spine.submit(complete())  # not started
    assert isinstance(outcome, Conflict)
    mock_clock.jump(0.9 * LEASE)
    await wait_all_tasks_blocked()
    assert not stalled(spine)


@pytest.mark.parametrize(("of", "kept"), [("scan", True), ("print", False)])
async def test_only_producers_that_see_a_job_renew_its_lease(
    spine: Spine, mock_clock: MockClock, of: str, kept: bool
) -> None:
    await spine.submit(replace(leased(), data=Registration("scan", labels={"team": "scan"}, lease_seconds=LEASE)))
    mock_clock.jump(0.9 * LEASE)
    event = replace(progress(1), job_id=ID.upper())
    [outcome] = await spine.submit(event, may_see=lambda job: job.labels == {"team": of})
    assert isinstance(outcome, Job) is kept
    mock_clock.jump(0.9 * LEASE)
    await wait_all_tasks_blocked()
    assert stalled(spine) is not kept


async def test_registering_again_renews_a_queued_job(spine: Spine, mock_clock: MockClock) -> None:
    await spine.submit(leased())
    mock_clock.jump(LEASE)
    await until(lambda: stalled(spine))
    with spine.broadcaster.subscribe(ID) as reader:  # a new watcher sees that it is stalled
        [silence] = await messages(reader, 1)
        assert isinstance(silence, Progress)
        assert silence.data.stalled
    await spine.submit(leased())
    assert not stalled(spine)


async def test_a_slow_store_does_not_expire_leases(mock_clock: MockClock, tmp_path: Path) -> None:
    """An event renews the lease when it arrives, not when it is decided."""
    gate = CommitGate()
    gate.may_commit.set()
    with closing(gate.open_store(tmp_path / "jobs.db", "FULL")) as store:
        async with running(store) as spine, trio.open_nursery() as nursery:
            await spine.submit(leased(), progress(5))
            gate.close()
            nursery.start_soon(spine.submit, register(2))
            await gate.committing.wait()
            for _ in range(10):
                mock_clock.jump(0.9 * LEASE)
                nursery.start_soon(spine.submit, progress(6))
                await wait_all_tasks_blocked()
            gate.may_commit.set()
            await until(lambda: now(spine).progress.current_step == 6)
            await wait_all_tasks_blocked()
            assert (now(spine).status, stalled(spine)) == (JobStatus.PROCESSING, False)


async def test_leases_begin_at_a_restart(mock_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with started_again(path) as spine:
        await spine.submit(leased(), progress(5))
        mock_clock.jump(LEASE)
        await until(lambda: stalled(spine))
        mock_clock.jump(1.9 * LEASE)
    mock_clock.jump(1000 * LEASE)
    async with started_again(path) as spine:
        await wait_all_tasks_blocked()
        assert (now(spine).status, stalled(spine)) == (JobStatus.PROCESSING, True)
        mock_clock.jump(2.9 * LEASE)
        await wait_all_tasks_blocked()
        assert now(spine).status is JobStatus.PROCESSING
        mock_clock.jump(0.1 * LEASE)
        await spine.registry.wait_finished(ID)
        assert now(spine).error == "producer lost"


async def test_hundreds_of_leases_expire_at_once(spine: Spine, mock_clock: MockClock) -> None:
    await spine.submit(*[leased(number) for number in range(600)])
    mock_clock.jump(LEASE)
    await until(lambda: all(job.progress.stalled for job in spine.registry.unfinished.values()))
    mock_clock.jump(2 * LEASE)
    for number in range(600):
        await spine.registry.wait_finished(job_id(number))
    assert {now(spine, number).error for number in range(500, 600)} == {"producer lost"}


async def test_a_job_ends_once_at_end_and_expiry(spine: Spine, mock_clock: MockClock) -> None:
    """Of the producer's end and the daemon's, decided together, one is accepted."""
    for number in range(1, 40):
        await spine.submit(leased(number, 10.0), start(number))
    mock_clock.jump(10)
    await until(lambda: all(job.progress.stalled for job in spine.registry.unfinished.values()))
    outcomes: dict[int, object] = {}

    async def end(number: int) -> None:
        for _ in range(number % 7):
            await trio.lowlevel.checkpoint()
        [outcomes[number]] = await spine.submit(CompletedEvent(job_id(number)))

    async with trio.open_nursery() as nursery:
        mock_clock.jump(20)
        for number in range(1, 40):
            nursery.start_soon(end, number)
    for number, outcome in outcomes.items():
        taken = now(spine, number).status is JobStatus.COMPLETED
        assert taken == isinstance(outcome, Job)
        changes = await spine.store.changes(0, 2**53, 100, job_id(number))
        ends = [c for c in changes if isinstance(c.message, StatusChange) and c.message.data.new_status.finished]
        assert len(ends) == 1
