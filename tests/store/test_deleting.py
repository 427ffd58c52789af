"""The number of jobs that a transaction deletes, by how long the last ones took; counted in rows."""

from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.store.base import Change, Deletion
from progressd.store.sqlite import SQLiteStore
from progressd.store.writes import (
    DELETE_SECONDS,
    FIRST_DELETE_BATCH,
    MAX_DELETE_BATCH,
    DeleteBatchSizer,
    delete,
)
from prometheus_client import Histogram
from support.samples import NOW, created, job, job_id


def count_of(histogram: Histogram) -> float:
    [family] = histogram.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_count"))


def settled(each: float, at_once: float = 0.0) -> int:
    """Return the jobs in a transaction after many, where each job and the transaction itself take some seconds."""
    pace = DeleteBatchSizer()
    for _ in range(100):
        pace.took(pace.jobs, at_once + pace.jobs * each)
    return pace.jobs


@pytest.mark.parametrize(
    ("each", "at_once", "jobs"),
    [
        (DELETE_SECONDS / 10, 0, 10),
        (DELETE_SECONDS / 2, 0, 2),
        (DELETE_SECONDS, 0, 1),
        (10 * DELETE_SECONDS, 0, 1),
        (0.0001, 10 * DELETE_SECONDS, 1),
        (1e-9, 0, MAX_DELETE_BATCH),
    ],
)
def test_batch_size_fits_the_time_and_is_at_least_one(each: float, at_once: float, jobs: int) -> None:
    assert settled(each, at_once) == jobs


@given(st.lists(st.floats(1e-6, 10), min_size=1))
def test_next_batch_is_no_larger_than_the_last_one_allows(seconds: list[float]) -> None:
    pace = DeleteBatchSizer()
    for one in seconds:
        before = pace.jobs
        pace.took(before, one)
        assert 1 <= pace.jobs <= MAX_DELETE_BATCH
        assert pace.jobs == 1 or pace.jobs * one / before <= DELETE_SECONDS * 1.001
        assert pace.jobs <= 1.25 * before + 1
    assert count_of(pace.durations) == len(seconds)


async def test_the_oldest_cursor_never_goes_back(store: SQLiteStore) -> None:
    """Even if two deletions run before the first result is noted."""
    jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=offset) for number, offset in ((1, 9), (2, 5))]
    await store.commit(jobs, [Change(one.offset, created(one.id)) for one in jobs])
    with store._writer:
        assert [delete(store._writer, [one])[1] for one in jobs] == [9, 9]


@pytest.mark.parametrize(("seconds", "expected"), [(1000.0, [8, 11]), (0.0, [1, 1, 1])])
async def test_a_delete_batch_is_as_large_as_the_time_allows(
    tmp_path: Path, seconds: float, expected: list[int]
) -> None:
    jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=number) for number in range(1, 31)]
    with closing(SQLiteStore.open(tmp_path / "store.sqlite", delete_seconds=seconds)) as store:
        await store.commit(jobs, [Change(number, created(job_id(number))) for number in range(1, 31)])
        assert [len(await store.delete_finished(NOW + timedelta(days=1), 500)) for _ in expected] == expected
        assert sum((await store.counts()).values()) == 30 - sum(expected)
        assert count_of(store.delete_durations) == len(expected)


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
    assert store.read[0] == FIRST_DELETE_BATCH
    assert sum(store.read) <= 2 * len(jobs)
