"""Retention: what is deleted when, and what stays."""

import os
import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from msgspec.structs import replace
from progressd import retention as module
from progressd.core.errors import StoreFailed
from progressd.core.job import Job
from progressd.core.status import JobStatus
from progressd.files import Files
from progressd.registry import Registry
from progressd.retention import FIRST, INTERVAL, PAUSE, STEP, run_retention
from progressd.store.base import Filter
from progressd.store.sqlite import SQLiteStore
from samples import ID, job, job_id
from scarcity import no_descriptors_left
from structlog.testing import capture_logs
from trio.testing import MockClock
from waiting import PATIENCE, eventually

DAY = 86400.0
HOUR = 3600.0
KEEP = 30 * DAY


def ended(number: int, days_ago: float, status: JobStatus = JobStatus.COMPLETED) -> Job:
    """Its end is at ten times the number."""
    return job(number, status, completed_at=datetime.now(UTC) - timedelta(days=days_ago), offset=10 * number)


def reopened(store: SQLiteStore, tmp_path: Path) -> SQLiteStore:
    """As by the next daemon, which gives out offsets above all that are there."""
    store.close()
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as db:
        db.execute("UPDATE meta SET value = 1000 WHERE key = 'reserved'")
        db.commit()
    return SQLiteStore.open(tmp_path / "store.sqlite")


async def jobs_in(store: SQLiteStore) -> set[str]:
    return {one.id for one in (await store.list_jobs(Filter(), 1000, 0))[0]}


async def test_what_finished_long_ago_is_deleted_with_its_files_and_nothing_else(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP", 2)
    old = [ended(1, 31), ended(2, 32, JobStatus.FAILED), ended(3, 33, JobStatus.CANCELLED), ended(4, 30.1)]
    kept = [
        ended(5, 29.9),
        job(6, created_at=datetime.now(UTC) - timedelta(days=90)),
        job(7, JobStatus.PROCESSING, created_at=datetime.now(UTC) - timedelta(days=90)),
    ]
    await store.commit([*old, *kept], [])
    registry, files = Registry(store), Files(tmp_path)
    await files.prepare(store)
    for one in [*old, *kept]:
        files.input(one.id).parent.mkdir()
        files.input(one.id).touch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_retention, KEEP, store, registry, files)
        await eventually(lambda: len(list((tmp_path / "jobs").iterdir())) == len(kept))
        nursery.cancel_scope.cancel()
    assert await jobs_in(store) == {one.id for one in kept}
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {one.id for one in kept}
    assert await registry.find([one.id for one in old]) == {}


@pytest.mark.parametrize("away", [timedelta(days=3650), timedelta(days=-3650)], ids=["ahead", "back"])
async def test_a_clock_that_jumps_makes_nothing_old(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: timedelta
) -> None:
    files = Files(tmp_path)
    await files.prepare(store)
    jump, looks = timedelta(), list[timedelta]()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            looks.append(jump)
            return datetime.now(tz) + jump

    monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(module, "FIRST", 0.01)
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    now = datetime.now(UTC)
    under_the_jump = [
        job(3, JobStatus.COMPLETED, created_at=now, completed_at=now + away, offset=30),
        job(4, JobStatus.COMPLETED, created_at=now + away, completed_at=now + away, offset=40),
    ]
    await store.commit([ended(1, 31)], [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
        with trio.fail_after(PATIENCE):
            while job_id(1) in await jobs_in(store):  # noqa: ASYNC110, nothing tells
                await trio.sleep(0.01)
            await store.commit(under_the_jump, [])
            for shift in (away, timedelta()):
                jump = shift
                looks.clear()
                while len(looks) < 10:  # noqa: ASYNC110, nothing tells
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert await jobs_in(store) == {job_id(3), job_id(4)}


class WatchedStore(SQLiteStore):
    """Tells of each look that has found nothing more to delete."""

    def watch(self) -> trio.MemoryReceiveChannel[None]:
        self._looks, looks = trio.open_memory_channel[None](10)
        return looks

    async def delete_finished(self, before: datetime, most: int, below: int | None = None) -> list[str]:
        ids = await super().delete_finished(before, most, below)
        if not ids:
            self._looks.send_nowait(None)
        return ids


class Looks:
    """Retention over a store, by a clock that is `ahead` and goes on with the mock clock; a look each hour."""

    def __init__(self, tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = timedelta()
        self._tmp_path = tmp_path
        self._clock = clock

        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + self.ahead + timedelta(seconds=trio.current_time() - began)

        began = trio.current_time()
        monkeypatch.setattr(module, "datetime", Clock)
        monkeypatch.setattr(module, "FIRST", HOUR)
        monkeypatch.setattr(module, "INTERVAL", HOUR)
        monkeypatch.setattr(module, "PAUSE", 0)

    async def left_after(self, hours: int) -> set[str]:
        """The jobs that are left after a daemon has run for so long."""
        store = WatchedStore.open(self._tmp_path / "store.sqlite")
        looks, files = store.watch(), Files(self._tmp_path)
        await files.prepare(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
            await looks.receive()
            for _ in range(hours):
                await trio.testing.wait_all_tasks_blocked()
                self._clock.jump(HOUR + 1)  # lest a rounded sum falls short
                await looks.receive()
            nursery.cancel_scope.cancel()
        left = await jobs_in(store)
        store.close()
        return left


@pytest.fixture
async def looks(store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> Looks:
    """Over jobs that ended 31 days, 10 days and just now ago."""
    await store.commit([ended(1, 31), ended(2, 10), ended(3, 0)], [])
    reopened(store, tmp_path).close()
    return Looks(tmp_path, mock_clock, monkeypatch)


async def test_a_clock_that_is_years_ahead_makes_jobs_old_no_faster_than_a_day_in_an_hour(
    looks: Looks, mock_clock: MockClock
) -> None:
    looks.ahead = timedelta(days=3650)
    assert await looks.left_after(18) == {job_id(2), job_id(3)}
    assert await looks.left_after(3) == {job_id(3)}  # nor does another start believe it
    assert await looks.left_after(8) == {job_id(3)}
    assert await looks.left_after(3) == set()


async def test_a_clock_that_is_set_right_in_time_has_cost_nothing(looks: Looks, mock_clock: MockClock) -> None:
    looks.ahead = timedelta(days=3650)
    assert await looks.left_after(10) == {job_id(2), job_id(3)}
    looks.ahead = timedelta()
    assert await looks.left_after(12) == {job_id(2), job_id(3)}
    looks.ahead = timedelta(days=3650)
    assert await looks.left_after(18) == {job_id(2), job_id(3)}


async def test_after_a_month_without_a_daemon_what_became_old_meanwhile_goes_within_a_day_or_two(
    looks: Looks, mock_clock: MockClock
) -> None:
    await looks.left_after(1)
    looks.ahead = timedelta(days=25)
    assert await looks.left_after(1) == {job_id(2), job_id(3)}
    assert await looks.left_after(24) == {job_id(3)}


async def test_a_long_job_that_ended_of_late_keeps_none_that_ended_before_it(
    store: SQLiteStore, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    await files.prepare(store)
    long = replace(ended(1, 1), offset=1000)
    await store.commit([long, *(ended(number, 40) for number in range(2, 10))], [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
        with trio.fail_after(PATIENCE):
            while await jobs_in(store) != {long.id}:  # noqa: ASYNC110, nothing tells
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_what_could_not_be_deleted_is_at_the_next_look(store: SQLiteStore, tmp_path: Path) -> None:
    files = Files(tmp_path)
    await files.prepare(store)
    files.input(ID).parent.mkdir()
    with no_descriptors_left():
        assert await files.remove([ID]) == {ID}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
        await eventually(lambda: not list(tmp_path.glob("*/*")))
        nursery.cancel_scope.cancel()


async def test_what_a_kill_has_left_of_deleted_jobs_is_swept_away(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_STEP", 2)
    files = Files(tmp_path)
    await files.prepare(store)
    kept = [job(1, JobStatus.COMPLETED, completed_at=datetime.now(UTC), offset=10), job(2)]
    await store.commit(kept, [])
    store = reopened(store, tmp_path)
    for number in range(1, 10):
        files.input(job_id(number)).parent.mkdir()
        files.input(job_id(number)).touch()
        age = KEEP - DAY if number == 3 else KEEP + DAY  # the third may have a job that the store has lost
        os.utime(files.input(job_id(number)).parent, (time.time() - age,) * 2)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
            await eventually(lambda: logs)
            nursery.cancel_scope.cancel()
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {job_id(number) for number in (1, 2, 3)}
    store.close()


@pytest.mark.parametrize("age", [DAY, KEEP + DAY], ids=["young", "old"])
async def test_files_of_jobs_stay_where_the_store_has_none(store: SQLiteStore, tmp_path: Path, age: float) -> None:
    files = Files(tmp_path)
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
    """Cannot say which jobs there are."""

    async def known(self, ids: Collection[str]) -> Collection[str]:
        raise StoreFailed("the store does not answer")


async def test_nothing_is_swept_away_while_the_store_does_not_say_what_there_is(tmp_path: Path) -> None:
    store: SQLiteStore = SQLiteStore.open(tmp_path / "store.sqlite")
    await store.commit([ended(1, 31), ended(3, 0)], [])
    reopened(store, tmp_path).close()
    store = UnreadableStore.open(tmp_path / "store.sqlite")
    files = Files(tmp_path)
    await files.prepare(store)
    for number in (1, 2):
        files.input(job_id(number)).parent.mkdir()
        os.utime(files.input(job_id(number)).parent, (1000, 1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_retention, KEEP, store, Registry(store), files)
        await eventually(lambda: not files.input(ID).parent.exists())  # the retention itself goes on
        await trio.testing.wait_all_tasks_blocked(0.02)
        nursery.cancel_scope.cancel()
    assert files.input(job_id(2)).parent.exists()
    store.close()


class ScriptedStore:
    """Says how many jobs it has deleted, or that it could not, as the script has it; then the test is over."""

    def __init__(self, script: Collection[int | StoreFailed], over: trio.CancelScope) -> None:
        self.asked: list[float] = []
        self._script = list(script)
        self._over = over

    async def last_seen(self) -> datetime | None:
        return None

    async def kept_time(self) -> datetime | None:
        return None

    async def keep_time(self, time: datetime, spacing: float, sure: bool) -> None:
        assert abs(datetime.now(UTC) - time) < timedelta(minutes=1)

    async def reached_after(self, time: datetime) -> int | None:
        return None

    async def delete_finished(self, before: datetime, most: int, below: int | None = None) -> list[str]:
        assert abs(datetime.now(UTC) - before - timedelta(seconds=KEEP)) < timedelta(minutes=1)
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
        ([STEP, 3, 0], [PAUSE, PAUSE, FIRST]),
        ([0, 1, 0], [FIRST, PAUSE, INTERVAL]),
        ([StoreFailed("disk full"), 0], [FIRST, INTERVAL]),
    ],
    ids=["many at a time with others let in between", "a look now and then", "a store that fails is asked again"],
)
async def test_when_it_looks(
    script: list[int | StoreFailed], pauses: list[float], tmp_path: Path, autojump_clock: MockClock
) -> None:
    with trio.CancelScope() as over:
        store = ScriptedStore(script, over)
        registry = Registry(store)  # type: ignore[arg-type]
        (tmp_path / "jobs").mkdir()
        await run_retention(KEEP, store, registry, Files(tmp_path))  # type: ignore[arg-type]
    assert [later - earlier for earlier, later in pairwise(store.asked)] == pytest.approx(pauses)
