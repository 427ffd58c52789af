"""The store protocol, on SQLite."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from progressd.core.job import Job
from progressd.core.messages import Error, ErrorData, JobStatus, ProgressData, StateChange
from progressd.store.base import Change, Filter
from progressd.store.rows import delete
from progressd.store.sqlite import DELETE_BATCH, SQLiteStore
from prometheus_client import Histogram
from support.samples import NOW, created, job, job_id, started, succeeded

OpenStore = Callable[[], SQLiteStore]
QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[OpenStore]:
    """Open the same store each time, like the next daemon; the previous one may have crashed."""
    opened: list[SQLiteStore] = []

    def open_it() -> SQLiteStore:
        opened.append(SQLiteStore.open(tmp_path / "store.sqlite", delete_seconds=1000.0))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> SQLiteStore:
    return open_store()


def failed(id_: str) -> Error:
    return Error(id_, ErrorData("no paper"))


def ended(number: int, at: datetime, status: JobStatus = COMPLETED, **fields: object) -> Job:
    return job(number, status, **{"created_at": at, "completed_at": at, **fields})


async def ids_of(store: SQLiteStore, which: Filter, limit: int = 100, offset: int = 0) -> list[str]:
    jobs, _ = await store.list_jobs(which, limit, offset)
    return [found.id for found in jobs]


def ids(*numbers: int) -> list[str]:
    return [job_id(number) for number in numbers]


# Jobs and changes


async def test_a_job_reads_back_with_all_fields(store: SQLiteStore) -> None:
    full = Job(
        id=job_id(1),
        kind="scan 😀",
        status=COMPLETED,
        created_at=NOW,
        created_offset=1,
        offset=9,
        progress_offset=7,
        progress_at=NOW + timedelta(seconds=1),
        progress=ProgressData(5, 12, "AI Upscaling", 41, 61.5),
        options={"dpi": 300, "deep": [{"a": None}], "ratio": 0.1, "huge": 2**70},
        labels={"by": "eve", "": '"\\ \n'},
        pipeline="pdf",
        input_filename="Öffnung\0.pdf",
        started_at=NOW + timedelta(microseconds=1),
        completed_at=NOW + timedelta(days=1),
        error="no\npaper",
        output_path="/api/jobs/x/download",
        page_count=12,
        elapsed_seconds=45.2,
        attempt=2,
    )
    await store.commit([full, job(2)], [])
    assert await store.jobs(ids(1, 2, 3)) == {job_id(1): full, job_id(2): job(2)}


async def test_ranges_exclude_after_and_include_upto(store: SQLiteStore) -> None:
    changes = [Change(offset, started(job_id(1 + offset % 2))) for offset in range(1, 11)]
    await store.commit([job(1), job(2)], changes)
    assert await store.changes(3, 7, 100) == changes[3:7]
    assert await store.changes(3, 10**9, 2) == changes[3:5]
    assert await store.changes(3, 8, 100, job_id(1)) == [changes[3], changes[5], changes[7]]
    assert await store.changes(0, 10, 1, job_id(2)) == changes[:1]
    assert await store.changes(10, 10, 100) == []


# Lists


async def test_lists_are_paged_newest_first_with_the_total(store: SQLiteStore) -> None:
    await store.commit([job(number) for number in range(1, 8)], [])
    for offset, expected in ((0, (7, 6, 5)), (3, (4, 3, 2)), (6, (1,)), (9, ())):
        jobs, total = await store.list_jobs(Filter(), 3, offset)
        assert [found.id for found in jobs] == ids(*expected)
        assert total == 7


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Filter(), (5, 4, 3, 2, 1)),
        (Filter([QUEUED]), (5, 1)),
        (Filter([QUEUED, FAILED]), (5, 3, 1)),
        (Filter([]), ()),
        (Filter(kind="scan"), (3, 2)),
        (Filter(kind="sca"), ()),
        (Filter(labels=(("by", "eve"),)), (4, 3)),
        (Filter(labels=(("by", "bob"),)), (5,)),
        (Filter(labels=(("to", "eve"),)), ()),
        (Filter(labels=(("by", "eve"), ("by", "eve"))), (4, 3)),
        (Filter(labels=(("by", "eve"), ("to", "bob"))), (4,)),
        (Filter(labels=(("by", "eve"), ("by", "bob"))), ()),
        (Filter(kind="scan", labels=(("by", "eve"), ("to", "bob"))), ()),
        (Filter([QUEUED, FAILED], "scan", (("by", "eve"),)), (3,)),
        (Filter(labels=(("$.x\"'", "%"),)), (1,)),
    ],
)
async def test_lists_match_all_filters(store: SQLiteStore, which: Filter, expected: tuple[int, ...]) -> None:
    jobs = [
        job(1, labels={"$.x\"'": "%"}),
        job(2, PROCESSING, kind="scan"),
        ended(3, NOW, FAILED, kind="scan", labels={"by": "eve"}),
        ended(4, NOW, labels={"by": "eve", "to": "bob"}),
        job(5, labels={"by": "bob"}),
    ]
    await store.commit(jobs, [])
    assert await ids_of(store, which) == ids(*expected)
    assert (await store.list_jobs(which, 1, 0))[1] == len(expected)


# Past messages


async def test_changes_of_unfinished_jobs_at_an_offset(store: SQLiteStore) -> None:
    one, two, three = ids(1, 2, 3)
    changes = [
        Change(1, created(one)),
        Change(2, started(one)),
        Change(3, created(two)),
        *map(Change, (4, 5), succeeded(one)),
        Change(6, started(two)),
        Change(7, created(three)),
        Change(8, failed(two)),
    ]
    await store.commit([ended(1, NOW), ended(2, NOW, FAILED), job(3)], changes)
    numbers = {upto: [change.offset for change in await store.changes_of_unfinished(upto)] for upto in range(9)}
    assert numbers == {
        0: [],
        1: [1],
        2: [1, 2],
        3: [1, 2, 3],
        4: [1, 2, 3, 4],
        5: [3],
        6: [3, 6],
        7: [3, 6, 7],
        8: [7],
    }


async def test_moved_returns_jobs_with_progress_in_range(store: SQLiteStore) -> None:
    await store.commit(
        [job(1), job(2, PROCESSING, progress_offset=5), ended(3, NOW, progress_offset=8), job(4, progress_offset=9)], []
    )
    for after, upto, expected in ((0, 100, (2, 3, 4)), (4, 8, (2, 3)), (5, 9, (3, 4)), (9, 100, ())):
        assert [found.id for found in await store.moved(after, upto, 1000)] == ids(*expected)
        assert [found.id for found in await store.moved(after, upto, 2)] == ids(*expected)[:2]


# Deletion


async def test_deletion_takes_the_oldest_ends_first(store: SQLiteStore) -> None:
    times = {number: NOW + timedelta(hours=number) for number in range(1, 6)}
    jobs = [replace(ended(number, times[6 - number]), offset=20 - number) for number in range(1, 6)]
    await store.commit([*jobs, job(6)], [Change(number, created(job_id(number))) for number in range(1, 7)])
    assert await store.delete_finished(times[4], 2) == ids(5, 4)
    assert await store.delete_finished(times[4], 2) == ids(3)
    assert await store.delete_finished(times[4], 2) == []
    assert await ids_of(store, Filter()) == ids(6, 2, 1)
    assert [change.offset for change in await store.changes(0, 100, 100)] == [1, 2, 6]


@pytest.mark.parametrize("offset", [UTC, timezone(timedelta(hours=-9))], ids=str)
@pytest.mark.parametrize("micros", [0, 1, 250_000, 999_999])
@pytest.mark.parametrize("other", [0, 1, 250_000, 999_999])
async def test_deletion_spares_later_jobs(store: SQLiteStore, micros: int, other: int, offset: timezone) -> None:
    before = NOW.replace(microsecond=micros)
    at_the_time, earlier = NOW.replace(microsecond=other), NOW - timedelta(seconds=1)
    await store.commit([ended(1, at_the_time), ended(2, earlier)], [])
    deleted = await store.delete_finished(before.astimezone(offset), 10)
    assert job_id(2) in deleted
    assert job_id(1) not in deleted or at_the_time < before


async def test_a_deletion_moves_the_oldest_cursor(open_store: OpenStore) -> None:
    store = open_store()
    changes = [Change(number, created(job_id(1 + number % 3))) for number in range(1, 10)]
    await store.commit([ended(1, NOW), ended(2, NOW + timedelta(hours=1)), job(3)], changes)
    assert store.oldest_cursor == 0
    await store.delete_finished(NOW, 10)
    assert store.oldest_cursor == 0
    await store.delete_finished(NOW + timedelta(seconds=1), 10)
    assert store.oldest_cursor == 9
    await store.delete_finished(NOW + timedelta(hours=2), 10)
    assert store.oldest_cursor == 9
    assert open_store().oldest_cursor == 9


# Restarts


async def test_everything_survives_a_restart(open_store: OpenStore) -> None:
    store = open_store()
    await store.commit([job(1, PROCESSING)], [Change(1, created()), Change(2, started())])
    again = open_store()
    assert again.id == store.id
    assert await again.unfinished() == [job(1, PROCESSING)]
    assert await again.changes(0, 100, 100) == [Change(1, created()), Change(2, started())]


async def test_reserved_offsets_are_not_given_out_again(open_store: OpenStore) -> None:
    store = open_store()
    assert open_store().first_offset == store.first_offset
    await store.reserve(500)
    assert open_store().first_offset == 500
    await store.reserve(400)
    assert open_store().first_offset == 500
    await open_store().reserve(900)
    assert open_store().first_offset == 900


# Random commits against a model


class Model:
    """A store in lists and dictionaries."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.changes: list[Change] = []

    def commit(self, jobs: list[Job], changes: list[Change]) -> None:
        self.jobs.update({changed.id: changed for changed in jobs})
        self.changes += changes

    def delete_finished(self, before: datetime, most: int) -> list[str]:
        over = [found for found in self.jobs.values() if found.completed_at and found.completed_at < before]
        gone = [found.id for found in sorted(over, key=lambda found: found.completed_at or NOW)][:most]
        self.jobs = {id_: found for id_, found in self.jobs.items() if id_ not in gone}
        self.changes = [change for change in self.changes if change.message.job_id not in gone]
        return gone

    def unfinished_at(self, upto: int) -> set[str]:
        now = {id_ for id_, found in self.jobs.items() if not found.status.finished}
        return now | {change.message.job_id for change in self.changes if change.offset > upto}


kinds = st.sampled_from(["start", "end", "progress", "delete"])
stories = st.lists(st.tuples(st.integers(1, 5), kinds, st.integers(1, 3)), max_size=30)


@settings(max_examples=30)
@given(stories, st.data())
def test_any_sequence_of_commits_equals_a_model(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    async def tell() -> None:
        model, offset = Model(), 0
        for number, what, count in story:
            if what == "delete":
                before = NOW + timedelta(minutes=number * 4)
                assert await store.delete_finished(before, count) == model.delete_finished(before, count)
                continue
            id_, changes = job_id(number), list[Change]()
            known = model.jobs.get(id_)
            if known is None:
                known = job(number, created_offset=offset + 1)
            if known.status.finished:
                continue
            for _ in range(count):
                offset += 1
                message: StateChange = failed(id_) if what == "end" else started(id_)
                changes += [] if what == "progress" else [Change(offset, message)]
            known = replace(known, offset=offset, status=PROCESSING)
            if what == "progress":
                known = replace(known, progress_offset=offset)
            if what == "end":
                known = replace(known, status=FAILED, completed_at=NOW + timedelta(minutes=offset))
            await store.commit([known], changes)
            model.commit([known], changes)
        upto = data.draw(st.integers(0, offset + 1))
        after = data.draw(st.integers(0, upto))
        most = data.draw(st.integers(1, 10))
        expected = [change for change in model.changes if after < change.offset <= upto]
        assert await store.changes(after, upto, most) == expected[:most]
        open_then = model.unfinished_at(upto)
        assert await store.changes_of_unfinished(upto) == [
            change for change in model.changes if change.offset <= upto and change.message.job_id in open_then
        ]
        assert await store.jobs(ids(*range(1, 6))) == model.jobs
        newest_first = sorted(model.jobs.values(), key=lambda found: -found.created_offset)
        assert await store.list_jobs(Filter(), most, 1) == (newest_first[1 : most + 1], len(newest_first))
        assert await store.unfinished() == [found for found in reversed(newest_first) if not found.status.finished]
        moved = {found.id for found in model.jobs.values() if after < found.progress_offset <= upto}
        assert {found.id for found in await store.moved(after, upto, 1000)} == moved

    with closing(SQLiteStore.open(tmp_path_factory.mktemp("store") / "store.sqlite", delete_seconds=1000.0)) as store:
        trio.run(tell)


# The time of a deletion


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
async def test_the_time_limits_a_delete_batch(tmp_path: Path, seconds: float, expected: list[int]) -> None:
    jobs = [job(number, JobStatus.COMPLETED, completed_at=NOW, offset=number) for number in range(1, 31)]
    with closing(SQLiteStore.open(tmp_path / "store.sqlite", delete_seconds=seconds)) as store:
        await store.commit(jobs, [Change(number, created(job_id(number))) for number in range(1, 31)])
        assert [len(await store.delete_finished(NOW + timedelta(days=1), 500)) for _ in expected] == expected
        assert sum((await store.counts()).values()) == 30 - sum(expected)
        assert count_of(store.delete_durations) == len(expected)
