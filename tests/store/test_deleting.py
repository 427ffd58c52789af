"""How many jobs a transaction deletes, by how long the last ones took; counted in rows, whatever the machine does."""

from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.job import Job
from progressd.core.status import JobStatus
from progressd.store import writes
from progressd.store.base import Change, Deletion
from progressd.store.sqlite import SQLiteStore
from progressd.store.writes import FIRST_STEP, MAX_STEP, TARGET_SECONDS, DeleteBatchSizer, delete
from support.samples import NOW, created, job, job_id


def settled(each: float, at_once: float = 0.0) -> int:
    """Jobs in a transaction, after many, where each takes so many seconds, and the transaction itself some as well."""
    pace = DeleteBatchSizer()
    for _ in range(100):
        pace.took(pace.jobs, at_once + pace.jobs * each)
    return pace.jobs


@pytest.mark.parametrize(
    ("each", "at_once", "jobs"),
    [
        (TARGET_SECONDS / 10, 0, 10),
        (TARGET_SECONDS / 2, 0, 2),
        (TARGET_SECONDS, 0, 1),
        (10 * TARGET_SECONDS, 0, 1),
        (0.0001, 10 * TARGET_SECONDS, 1),
        (1e-9, 0, MAX_STEP),
    ],
)
def test_a_transaction_has_as_many_jobs_as_go_in_the_time_and_one_at_least(
    each: float, at_once: float, jobs: int
) -> None:
    assert settled(each, at_once) == jobs


@given(st.lists(st.floats(1e-6, 10), min_size=1))
def test_whatever_they_took_the_next_one_is_no_longer_than_what_was_measured_allows(seconds: list[float]) -> None:
    pace = DeleteBatchSizer()
    for one in seconds:
        before = pace.jobs
        pace.took(before, one)
        assert 1 <= pace.jobs <= MAX_STEP
        assert pace.jobs == 1 or pace.jobs * one / before <= TARGET_SECONDS * 1.001
        assert pace.jobs <= 1.25 * before + 1
    assert pace.longest == max(seconds)


async def test_a_deletion_goes_on_from_where_the_one_before_it_has_left_the_oldest_cursor(store: SQLiteStore) -> None:
    """Also when nobody has noted yet where that was: two are asked for at once, and the threads do not wait for it."""
    jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=offset) for number, offset in ((1, 9), (2, 5))]
    await store.commit(jobs, [Change(one.offset, created(one.id)) for one in jobs])
    with store._writer:
        assert [delete(store._writer, [one])[1] for one in jobs] == [9, 9]


async def test_a_step_deletes_no_more_rows_than_the_pace_says(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=number) for number in range(1, 31)]
    await store.commit(jobs, [Change(number, created(job_id(number))) for number in range(1, 31)])
    monkeypatch.setattr(writes, "TARGET_SECONDS", 1000.0)
    assert store.longest_deletion == 0
    for expected in (8, 11):
        gone = await store.delete_finished(NOW + timedelta(days=1), 500)
        assert len(gone) == expected
    monkeypatch.setattr(writes, "TARGET_SECONDS", 0.0)
    assert [len(await store.delete_finished(NOW + timedelta(days=1), 500)) for _ in range(3)] == [1, 1, 1]
    assert sum((await store.counts()).values()) == 30 - 8 - 11 - 3
    assert store.longest_deletion > 0


class ReadingStore(SQLiteStore):
    """Note how many jobs are read for each deletion."""

    read: list[int]

    async def _delete(self, jobs: Sequence[Job], deletion: Deletion | None = None) -> list[str]:
        self.read.append(len(jobs))
        return await super()._delete(jobs, deletion)


async def test_a_step_reads_no_more_jobs_than_it_deletes(tmp_path: Path) -> None:
    with closing(ReadingStore.open(tmp_path / "store.sqlite")) as store:
        store.read = []
        jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=number) for number in range(1, 31)]
        await store.commit(jobs, [])
        while await store.delete_finished(NOW + timedelta(days=1), 500):
            pass
    assert store.read[0] == FIRST_STEP
    assert sum(store.read) <= 2 * len(jobs)
