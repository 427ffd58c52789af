"""The registry: which jobs it has in memory, and who it wakes."""

import pytest
import trio
import trio.testing
from progressd import registry as module
from progressd.core.errors import NotFound
from progressd.core.status import JobStatus
from progressd.registry import Registry
from progressd.store.sqlite import SQLiteStore
from samples import NOW, job, job_id

QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus


@pytest.fixture
def registry(store: SQLiteStore) -> Registry:
    return Registry(store)


async def test_after_a_start_the_unfinished_jobs_are_there_oldest_first(store: SQLiteStore, registry: Registry) -> None:
    jobs = [job(3), job(1, PROCESSING), job(2, COMPLETED, completed_at=NOW), job(4, CANCELLED, completed_at=NOW)]
    await store.commit(jobs, [])
    await registry.load()
    assert list(registry.unfinished) == [job_id(1), job_id(3)]
    assert registry.known(job_id(1)) == job(1, PROCESSING)
    assert registry.known(job_id(2)) is None


async def test_a_finished_job_that_is_not_in_memory_is_found_in_the_store(
    store: SQLiteStore, registry: Registry
) -> None:
    old = job(1, FAILED, completed_at=NOW, error="no paper")
    await store.commit([old], [])
    assert await registry.get(job_id(1)) == old
    registry.keep(job(2))
    assert await registry.find([job_id(1), job_id(2), job_id(3)]) == {job_id(1): old, job_id(2): job(2)}


async def test_a_job_that_does_not_exist_is_named(registry: Registry) -> None:
    with pytest.raises(NotFound, match=job_id(9)):
        await registry.get(job_id(9))


async def test_what_is_in_memory_counts_and_not_what_the_store_still_has(
    store: SQLiteStore, registry: Registry
) -> None:
    await store.commit([job(1)], [])
    moving = job(1, PROCESSING)
    registry.keep(moving)
    assert await registry.get(job_id(1)) == moving


def test_a_job_keeps_its_place_in_the_queue_while_it_moves(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.keep(job(number))
    registry.keep(job(1, PROCESSING))
    registry.keep(job(1))
    assert list(registry.unfinished) == [job_id(1), job_id(2), job_id(3)]


def test_only_the_last_finished_jobs_stay_in_memory(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    for number in (1, 2, 3):
        registry.keep(job(number))
        registry.keep(job(number, COMPLETED))
    assert registry.unfinished == {}
    assert [registry.known(job_id(number)) for number in (1, 2, 3)] == [None, job(2, COMPLETED), job(3, COMPLETED)]


def test_a_deleted_job_is_forgotten(registry: Registry) -> None:
    registry.keep(job(1, COMPLETED))
    registry.forget([job_id(1), job_id(2)])
    assert registry.known(job_id(1)) is None


@pytest.mark.parametrize("end", [COMPLETED, FAILED, CANCELLED])
async def test_everyone_who_waits_for_the_end_of_a_job_is_woken_by_it_alone(registry: Registry, end: JobStatus) -> None:
    registry.keep(job(1))
    registry.keep(job(2))
    woken = []

    async def wait(number: int) -> None:
        await registry.wait_finished(job_id(number))
        woken.append(number)

    with trio.fail_after(5):
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


async def test_nobody_waits_for_a_job_that_has_finished(registry: Registry) -> None:
    registry.keep(job(1, COMPLETED))
    with trio.fail_after(5):
        await registry.wait_finished(job_id(1))


async def test_a_queued_job_wakes_who_waits_for_one_and_others_do_not(registry: Registry) -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.wait_queued)
            await trio.testing.wait_all_tasks_blocked()
            registry.keep(job(1, PROCESSING))
            registry.keep(job(1, COMPLETED))
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            registry.keep(job(2))


async def test_a_job_queued_before_anyone_waits_is_not_missed(registry: Registry) -> None:
    registry.keep(job(1))
    with trio.fail_after(5):
        await registry.wait_queued()
    with trio.move_on_after(0) as waited:
        await registry.wait_queued()
    assert waited.cancelled_caught, "one job woke twice"
