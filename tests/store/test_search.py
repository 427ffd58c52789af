"""Searches, orders and pages of lists, against a model in Python."""

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from progressd.core.errors import StoreFailed
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.store import search
from progressd.store.base import Filter, Paging, Sort
from progressd.store.sqlite import SQLiteStore
from support.samples import NOW, job, job_id
from support.waiting import eventually

FINISHED = [status for status in JobStatus if status.finished]
NAMES = st.sampled_from(
    ["Backup of db1", "rsync -a /srv/Ärger x", "100%_done", "写真の整理", "SCAN[1]*?", "scan", "ОТЧЁТ за май"]
)
LABELS = st.dictionaries(st.sampled_from(["host", "by"]), st.sampled_from(["db1", "web", "eve"]), max_size=2)
QUERIES = [
    ("backup",),
    ("db1",),
    ("DB1", "backup"),
    ("ärger",),
    ("ÄRGER", "sr"),
    ("отчёт",),
    ("0%_d",),
    ("%",),
    ("写真",),
    ("整",),
    ("[1]*",),
    ("paper",),
    ("no paper", "scan"),
    ('"',),
    ("6e4d1c9e",),
    (job_id(3),),
    (job_id(3)[:30],),
    ("a", "e"),
    ("nothing like this",),
]


class Model:
    """A store, and the jobs that it must contain."""

    def __init__(self, store: SQLiteStore) -> None:
        self.store = store
        self.jobs = dict[int, Job]()
        self.offset = 0

    def place(self, step: int) -> int:
        self.offset += step
        return self.offset

    async def commit(self, *jobs: Job) -> None:
        await self.store.commit(jobs, [])
        self.jobs |= {one.created_offset: one for one in jobs}

    async def add(self, name: str | None, kind: str, labels: dict[str, str], status: JobStatus, step: int) -> None:
        offset = self.place(step)
        new = job(offset, kind=kind, name=name, labels=labels, created_offset=offset, offset=self.place(1))
        await self.commit(new)
        await self.move(offset, status)

    async def move(self, which: int, status: JobStatus) -> None:
        """Change the status of a job as ingest does: finished jobs never change."""
        old = self.jobs[which]
        if old.status.finished or old.status is status:
            return
        at = NOW + timedelta(seconds=self.offset) if status.finished else None
        error = "No paper" if status is JobStatus.FAILED else None
        await self.commit(replace(old, status=status, offset=self.place(1), completed_at=at, error=error))

    async def delete(self, which: int) -> None:
        if self.jobs[which].status.finished:
            assert await self.store.delete([self.jobs.pop(which).id])

    async def index(self) -> None:
        while await self.store._transaction(lambda db: search.index(db, 1)):
            pass

    def unfinished(self) -> list[tuple[int, int]]:
        return [(one.offset, one.created_offset) for one in self.jobs.values() if not one.status.finished]

    def expected(self, which: Filter, sort: Sort) -> list[Job]:
        found = [one for one in self.jobs.values() if fits(one, which)]
        if sort is Sort.FINISHED:
            found = [one for one in found if one.status.finished]
        return sorted(found, key=lambda one: key(one, sort), reverse=sort.startswith("-"))


def key(one: Job, sort: Sort) -> tuple[object, ...]:
    if sort is Sort.NAME:
        name = one.name or one.input_filename or one.kind
        return ("".join(letter.lower() if letter.isascii() else letter for letter in name), one.created_offset)
    return (one.offset if sort in (Sort.UPDATED, Sort.FINISHED) else one.created_offset,)


def fits(one: Job, which: Filter) -> bool:
    attention = one.status is JobStatus.FAILED or (not one.status.finished and one.created_offset in which.troubled)
    return (
        (which.statuses is None or one.status in which.statuses)
        and (which.kind is None or one.kind == which.kind)
        and all(one.labels.get(name) == value for name, value in which.labels)
        and all(contains(one, word) for word in which.words)
        and (attention or not which.attention)
    )


def contains(one: Job, word: str) -> bool:
    texts = [one.name, one.input_filename, one.kind, *one.labels.values(), one.id[:8], one.error]
    found = any(word.lower() in text.lower() for text in texts if text is not None)
    return found or (len(word) > 8 and one.id.startswith(word.lower()))


async def walk(model: Model, which: Filter, sort: Sort, limit: int, *, limited: bool) -> list[Job]:
    found, after = list[Job](), None
    while True:
        page = await model.store.page(which, Paging(limit, 0, sort, after, (), limited, model.unfinished()))
        found += page.jobs
        if page.next is None:
            return found
        assert page.next != after
        after = page.next


ADD = st.tuples(
    st.just("add"),
    NAMES | st.none(),
    st.sampled_from(["scan", "ocr"]),
    LABELS,
    st.sampled_from(JobStatus),
    st.sampled_from([1, 7, 40_000]),
)
CHANGE = st.one_of(
    st.tuples(st.just("move"), st.integers(0, 20), st.sampled_from(JobStatus)),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(st.just("index")),
)
STEPS = st.tuples(st.lists(ADD, min_size=6, max_size=15), st.lists(ADD | CHANGE, min_size=3, max_size=15)).map(
    lambda both: both[0] + both[1]
)
FILTERS = st.builds(
    Filter,
    st.none() | st.sets(st.sampled_from(JobStatus), min_size=1),
    st.none() | st.sampled_from(["scan", "ocr"]),
    st.sampled_from([(), (("host", "db1"),), (("by", "eve"), ("host", "db1"))]),
    st.sampled_from([(), *QUERIES]),
    st.booleans(),
    st.lists(st.integers(1, 60), max_size=10),
)


async def run(model: Model, steps: Iterable[Sequence[object]]) -> None:
    for name, *given_ in steps:
        if name in ("move", "delete"):
            if not model.jobs:
                continue
            given_[0] = list(model.jobs)[given_[0] % len(model.jobs)]  # type: ignore[operator]
        await getattr(model, str(name))(*given_)


@settings(max_examples=10, phases=[Phase.generate])
@given(STEPS, st.lists(FILTERS, min_size=5, max_size=10), st.sampled_from(Sort), st.integers(1, 4), st.booleans())
async def test_any_list_equals_a_model(
    steps: list[tuple[object, ...]], filters: list[Filter], sort: Sort, limit: int, limited: bool
) -> None:
    with (
        TemporaryDirectory() as directory,
        closing(SQLiteStore.open(Path(directory) / "store.db", "OFF", search_seconds=0)) as store,
    ):
        model = Model(store)
        await run(model, steps)
        for which in filters:
            expected = model.expected(which, sort)
            assert await walk(model, which, sort, limit, limited=limited) == expected, which
            page = await store.page(which, Paging(100, 0, sort, None, tuple(JobStatus), False, model.unfinished()))
            assert (page.jobs, page.next) == (expected, None)
            numbers = page.numbers
            of_status = [
                one.status for one in model.expected(which._replace(statuses=None, attention=False), Sort.NEWEST)
            ]
            assert numbers.exact
            assert numbers.by_status == {status: of_status.count(status) for status in JobStatus}
            attention = model.expected(which._replace(attention=True), Sort.NEWEST)
            assert numbers.total(which.statuses, attention=True) == len(attention)


@settings(max_examples=12, phases=[Phase.generate])
@given(
    st.lists(ADD, min_size=8, max_size=15),
    st.lists(ADD | CHANGE, max_size=20),
    st.sampled_from([Filter(), Filter(words=("a",)), Filter(words=("scan",)), Filter(kind="scan", attention=True)]),
    st.sampled_from([sort for sort in Sort if sort is not Sort.NAME]),
    st.booleans(),
)
async def test_a_walk_sees_each_unchanged_job_once(
    jobs: list[tuple[object, ...]], changes: list[tuple[object, ...]], which: Filter, sort: Sort, limited: bool
) -> None:
    with (
        TemporaryDirectory() as directory,
        closing(SQLiteStore.open(Path(directory) / "store.db", "OFF", search_seconds=0)) as store,
    ):
        model = Model(store)
        await run(model, jobs)
        before = model.expected(which, sort)
        found, after, steps = list[Job](), None, iter(changes)
        while True:
            page = await store.page(which, Paging(2, 0, sort, after, (), limited, model.unfinished()))
            found += page.jobs
            if page.next is None:
                break
            after = page.next
            await run(model, islice(steps, 2))
        unchanged = [one for one in before if model.jobs.get(one.created_offset) == one]
        assert [one for one in found if one in unchanged] == unchanged
        assert len({one.created_offset for one in found}) == len(found) or sort is not Sort.NEWEST


async def test_a_damaged_index_is_built_again(store: SQLiteStore) -> None:
    model = Model(store)
    for number in range(20):
        await model.add(f"book {number}", "scan", {}, JobStatus.COMPLETED, 1)
    await model.index()
    which = Filter(words=("book",))
    assert (await store.page(which, Paging(100))).numbers.total(None) == 20

    def damage(db: sqlite3.Connection) -> None:
        db.execute("UPDATE search_data SET block = zeroblob(100) WHERE id > 10")

    await store._transaction(damage)
    with pytest.raises(StoreFailed):
        await store.page(which, Paging(100))
    assert (store.damage, store.index_damaged) == (None, True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        await eventually(lambda: not store.index_damaged)
        nursery.cancel_scope.cancel()
    await model.add("book 20", "scan", {}, JobStatus.COMPLETED, 1)
    await model.delete(next(iter(model.jobs)))
    await model.index()
    assert await walk(model, which, Sort.NEWEST, 3, limited=False) == model.expected(which, Sort.NEWEST)
