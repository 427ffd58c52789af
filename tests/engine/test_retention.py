"""Retention: what is deleted, and when."""

import os
import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from progressd.core.errors import StoreFailed
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.engine import retention as module
from progressd.engine.registry import Registry
from progressd.engine.retention import DELETE_BATCH, FIRST_DELAY, INTERVAL, PAUSE, run_retention
from progressd.files.job_files import JobFiles
from progressd.store.base import Filter
from progressd.store.sqlite import SQLiteStore
from structlog.testing import capture_logs
from support.samples import ID, job, job_id
from support.waiting import eventually
from trio.testing import MockClock

DAY = 86400.0
KEEP = 30 * DAY


def ended(number: int, days_ago: float, status: JobStatus = JobStatus.COMPLETED) -> Job:
    """Return a finished job with offset 10 × number."""
    at = datetime.now(UTC) - timedelta(days=days_ago)
    return job(number, status, created_at=at, completed_at=at, offset=10 * number)


def reopened(store: SQLiteStore, tmp_path: Path) -> SQLiteStore:
    """Open the store again, with offsets above all in it."""
    store.close()
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as db:
        db.execute("UPDATE meta SET value = 1000 WHERE key = 'reserved'")
        db.commit()
    return SQLiteStore.open(tmp_path / "store.sqlite")


async def jobs_in(store: SQLiteStore) -> set[str]:
    return {one.id for one in (await store.list_jobs(Filter(), 1000, 0))[0]}


async def test_old_jobs_are_deleted_with_their_files(store: SQLiteStore, tmp_path: Path) -> None:
    old = [ended(1, 31), ended(2, 32, JobStatus.FAILED), ended(3, 33, JobStatus.CANCELLED), ended(4, 30.1)]
    kept = [
        ended(5, 29.9),
        job(6, created_at=datetime.now(UTC) - timedelta(days=90)),
        job(7, JobStatus.PROCESSING, created_at=datetime.now(UTC) - timedelta(days=90)),
    ]
    await store.commit([*old, *kept], [])
    registry, files = Registry(store), JobFiles(tmp_path)
    await files.prepare(store)
    for one in [*old, *kept]:
        files.input(one.id).parent.mkdir()
        files.input(one.id).touch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run_retention, batch=2), KEEP, store, registry, files)
        await eventually(lambda: len(list((tmp_path / "jobs").iterdir())) == len(kept))
        nursery.cancel_scope.cancel()
    assert await jobs_in(store) == {one.id for one in kept}
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {one.id for one in kept}
    assert await registry.find([one.id for one in old]) == {}


async def test_files_of_deleted_jobs_are_removed_after_a_kill(store: SQLiteStore, tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    await files.prepare(store)
    kept = [
        job(1, JobStatus.COMPLETED, completed_at=datetime.now(UTC), offset=10),
        job(2, created_at=datetime.now(UTC)),
    ]
    await store.commit(kept, [])
    store = reopened(store, tmp_path)
    for number in range(1, 10):
        files.input(job_id(number)).parent.mkdir()
        files.input(job_id(number)).touch()
        age = KEEP - DAY if number == 3 else KEEP + DAY  # the third may have a job that the store has lost
        os.utime(files.input(job_id(number)).parent, (time.time() - age,) * 2)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_retention, batch=2), KEEP, store, Registry(store), files)
            await eventually(lambda: logs)
            nursery.cancel_scope.cancel()
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {job_id(number) for number in (1, 2, 3)}
    store.close()


@pytest.mark.parametrize("age", [DAY, KEEP + DAY], ids=["young", "old"])
async def test_files_stay_if_the_store_has_no_job(store: SQLiteStore, tmp_path: Path, age: float) -> None:
    files = JobFiles(tmp_path)
    await files.prepare(store)
    files.input(ID).parent.mkdir()
    os.utime(files.input(ID).parent, (time.time() - age,) * 2)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
            await eventually(lambda: logs)
            await trio.testing.wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()
    assert files.input(ID).parent.exists()
    [line] = logs
    assert "`progressd check --repair`" in line["event"]


class UnreadableStore(SQLiteStore):
    """A store that cannot list its jobs."""

    async def known(self, ids: Collection[str]) -> Collection[str]:
        raise StoreFailed("the store does not answer")


async def test_files_stay_while_the_store_fails(tmp_path: Path) -> None:
    store: SQLiteStore = SQLiteStore.open(tmp_path / "store.sqlite")
    await store.commit([ended(1, 31), ended(3, 0)], [])
    reopened(store, tmp_path).close()
    store = UnreadableStore.open(tmp_path / "store.sqlite")
    files = JobFiles(tmp_path)
    await files.prepare(store)
    for number in (1, 2):
        files.input(job_id(number)).parent.mkdir()
        os.utime(files.input(job_id(number)).parent, (1000, 1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
        await eventually(lambda: not files.input(ID).parent.exists())  # retention continues
        await trio.testing.wait_all_tasks_blocked(0.02)
        nursery.cancel_scope.cancel()
    assert files.input(job_id(2)).parent.exists()
    store.close()


class ScriptedStore:
    """A store that deletes or fails as scripted, and then ends the test."""

    def __init__(
        self, script: Collection[int | StoreFailed], over: trio.CancelScope, newest: datetime | None = None
    ) -> None:
        self.asked: list[float] = []
        self._newest = newest
        self._script = list(script)
        self._over = over

    async def last_seen(self) -> datetime | None:
        return self._newest

    async def delete_finished(self, before: datetime, most: int) -> list[str]:
        assert abs(module.datetime.now(UTC) - before - timedelta(seconds=KEEP)) < timedelta(minutes=1)
        self.asked.append(trio.current_time())
        if not self._script:
            self._over.cancel()
            await trio.sleep_forever()
        outcome = self._script.pop(0)
        if isinstance(outcome, StoreFailed):
            raise outcome
        return [job_id(number) for number in range(outcome)]


@pytest.mark.parametrize(
    ("script", "pauses"),
    [
        ([DELETE_BATCH, 3, 0], [PAUSE, PAUSE, FIRST_DELAY]),
        ([0, 1, 0], [FIRST_DELAY, PAUSE, INTERVAL]),
        ([StoreFailed("disk full"), 0], [FIRST_DELAY, INTERVAL]),
    ],
    ids=["full batches", "few jobs", "a failing store"],
)
async def test_retention_intervals(
    script: list[int | StoreFailed], pauses: list[float], tmp_path: Path, autojump_clock: MockClock
) -> None:
    with trio.CancelScope() as over:
        store = ScriptedStore(script, over)
        registry = Registry(store)  # type: ignore[arg-type]
        (tmp_path / "jobs").mkdir()
        await run_retention(KEEP, store, registry, JobFiles(tmp_path))  # type: ignore[arg-type]
    assert [later - earlier for earlier, later in pairwise(store.asked)] == pytest.approx(pauses)


async def test_a_clock_jump_delays_deletion_by_one_run(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            """Jump ten years ahead at the second run, and from the fourth on."""
            ahead = trio.current_time() - began
            return datetime.now(tz) + timedelta(days=3650 if 30 < ahead < 600 or ahead > 1000 else 0)

    began = trio.current_time()
    monkeypatch.setattr(module, "datetime", Clock)
    with trio.CancelScope() as over:
        store = ScriptedStore([0, 0], over)
        (tmp_path / "jobs").mkdir()
        await run_retention(KEEP, store, Registry(store), JobFiles(tmp_path))  # type: ignore[arg-type]
    assert [time - began for time in store.asked] == pytest.approx(
        [0, FIRST_DELAY + INTERVAL, FIRST_DELAY + 3 * INTERVAL]
    )


async def test_a_start_with_only_old_jobs_deletes_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with trio.CancelScope() as over:
        store = ScriptedStore([0], over, newest=datetime.now(UTC) - timedelta(days=31))
        (tmp_path / "jobs").mkdir()
        await run_retention(KEEP, store, Registry(store), JobFiles(tmp_path))  # type: ignore[arg-type]
    assert [time - began for time in store.asked] == pytest.approx([FIRST_DELAY, FIRST_DELAY + INTERVAL])
