"""Lists of jobs and their counts, against a model."""

import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.store.base import Filter
from progressd.store.sqlite import SQLiteStore
from support.samples import NOW, job, job_id

FINISHED = [status for status in JobStatus if status.finished]
EVERY_LIST = [
    Filter(statuses, kind, labels)
    for statuses in (None, FINISHED, [JobStatus.FAILED], [])
    for kind in (None, "scan", "unknown")
    for labels in ((), (("by", "eve"),), (("by", "unknown"),))
]
WORDS = st.sampled_from(["by", "eve", "", "a=b", "\0", '"\\\n', "é😀", "label:by", "[]"])
LABELS = st.dictionaries(st.just("by") | WORDS, st.just("eve") | WORDS, max_size=3)


def placed(number: int, status: JobStatus, kind: str = "scan", labels: dict[str, str] | None = None) -> Job:
    """Return a job; a block of offsets has some jobs."""
    at = NOW if status.finished else None
    return job(number, status, kind=kind, labels=labels or {}, created_offset=number * 20_000, completed_at=at)


def fits(one: Job, which: Filter) -> bool:
    return (
        (which.statuses is None or one.status in which.statuses)
        and (which.kind is None or one.kind == which.kind)
        and all(one.labels.get(name) == value for name, value in which.labels)
    )


async def check(store: SQLiteStore, jobs: dict[int, Job]) -> None:
    newest_first = [jobs[number] for number in sorted(jobs, reverse=True)]
    for which in EVERY_LIST:
        expected = [one for one in newest_first if fits(one, which)]
        for limit, offset in ((3, 0), (2, 5), (100, 0), (1, 11), (5, 1000)):
            found, total = await store.list_jobs(which, limit, offset)
            assert (found, total) == (expected[offset : offset + limit], len(expected)), (which, limit, offset)
    assert await store.counts() == {**dict.fromkeys(JobStatus, 0), **Counter(one.status for one in jobs.values())}
    kept, counted = "SELECT * FROM {} ORDER BY 1, 2, 3, 4", store._reader.execute
    for table, view in (("labels", "labelled"), ("counts", "counted")):
        assert counted(kept.format(table)).fetchall() == counted(kept.format(view)).fetchall()


STEP = st.one_of(
    st.tuples(
        st.just("job"),
        st.integers(1, 20),
        st.sampled_from(JobStatus),
        st.sampled_from(["scan", "backup", "", "kind"]) | WORDS,
        LABELS,
    ),
    st.tuples(st.just("commit")),
    st.tuples(st.just("delete"), st.integers(1, 5)),
)


@settings(max_examples=12)
@given(st.lists(STEP, max_size=30))
async def test_lists_and_counts_equal_a_model(steps: list[tuple[object, ...]]) -> None:
    jobs: dict[int, Job] = {}
    batch: dict[int, Job] = {}
    with TemporaryDirectory() as directory, closing(SQLiteStore.open(Path(directory) / "store.db", "OFF")) as store:
        for step in [*steps, ("commit",)]:
            if step[0] == "job":
                _, number, status, kind, labels = step
                old = batch.get(number) or jobs.get(number)  # type: ignore[call-overload]
                if old is not None:
                    kind, labels = old.kind, old.labels  # they never change
                batch[number] = placed(number, status, kind, labels)  # type: ignore[index, arg-type]
            elif step[0] == "commit":
                await store.commit(batch.values(), [])
                jobs, batch = {**jobs, **batch}, {}
            else:
                gone = await store.delete_finished(NOW + timedelta(days=1), step[1])  # type: ignore[arg-type]
                jobs = {number: one for number, one in jobs.items() if job_id(number) not in gone}
        await check(store, jobs)


@pytest.mark.parametrize("many", [1, 5000])
async def test_any_page_is_found(store: SQLiteStore, many: int) -> None:
    jobs = {number: placed(number, FINISHED[number % 3]) for number in range(1, many + 1)}
    await store.commit(jobs.values(), [])
    for offset in (0, 1, many // 2, many - 2, many - 1, many, many + 7, 2**53):
        found, total = await store.list_jobs(Filter(), 3, max(0, offset))
        assert total == many
        newest = many - max(0, offset)
        assert [one.id for one in found] == [job_id(number) for number in range(newest, max(0, newest - 3), -1)]


async def test_more_jobs_than_statement_parameters_are_found(store: SQLiteStore) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        many = db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) + 1
    assert len(await store.jobs([job_id(1)] * many)) == 0
    await store.commit([job(1), job(2)], [])
    assert len(await store.jobs([job_id(number % 3) for number in range(many)])) == 2
