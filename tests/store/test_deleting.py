"""Deletions take little time in each transaction, and keep cursors valid."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from progressd.core.messages import JobStatus
from progressd.store.base import Change
from progressd.store.rows import delete
from progressd.store.sqlite import DELETE_BATCH, SQLiteStore
from prometheus_client import Histogram
from support.samples import NOW, created, job, job_id


def count_of(histogram: Histogram) -> float:
    [family] = histogram.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_count"))


async def test_the_oldest_cursor_never_goes_back(store: SQLiteStore) -> None:
    """Even if two deletions run before the first result is noted."""
    jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=offset) for number, offset in ((1, 9), (2, 5))]
    await store.commit(jobs, [Change(one.offset, created(one.id)) for one in jobs])
    with store._writer:
        assert [delete(store._writer, [one])[1] for one in jobs] == [9, 9]


@pytest.mark.parametrize(("seconds", "expected"), [(1000.0, [DELETE_BATCH, 30 - DELETE_BATCH]), (0.0, [1, 1, 1])])
async def test_a_delete_batch_is_as_large_as_the_time_allows(
    tmp_path: Path, seconds: float, expected: list[int]
) -> None:
    jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=number) for number in range(1, 31)]
    with closing(SQLiteStore.open(tmp_path / "store.sqlite", delete_seconds=seconds)) as store:
        await store.commit(jobs, [Change(number, created(job_id(number))) for number in range(1, 31)])
        assert [len(await store.delete_finished(NOW + timedelta(days=1), 500)) for _ in expected] == expected
        assert sum((await store.counts()).values()) == 30 - sum(expected)
        assert count_of(store.delete_durations) == len(expected)
