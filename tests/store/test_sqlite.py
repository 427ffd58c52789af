"""The SQLite file: schema, other processes, crashes, and queries that use indexes."""

import os
import re
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from progressd.core.errors import SettingsError, StoreFailed
from progressd.core.messages import JobStatus
from progressd.store.base import Change, Filter
from progressd.store.schema import MIGRATIONS
from progressd.store.sqlite import SQLiteStore
from support.samples import NOW, created, job, job_id, started
from support.scarcity import no_descriptors_left


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def other_process(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def descriptors() -> set[str]:
    links = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            links.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # of the listing itself
            continue
    return links


# The file


def test_a_new_file_has_wal_and_the_newest_schema(path: Path) -> None:
    SQLiteStore.open(path).close()
    with closing(other_process(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(("setting", "number"), [("FULL", 2), ("NORMAL", 1), ("OFF", 0)])
async def test_the_synchronous_setting_applies(path: Path, setting: str, number: int) -> None:
    with closing(SQLiteStore.open(path, setting)) as store:
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (number,)


def test_an_impossible_path_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "store.sqlite"):
        with pytest.raises(SettingsError, match=f"cannot open the database {re.escape(str(path))}: "):
            SQLiteStore.open(path)


async def test_a_closed_store_raises(path: Path) -> None:
    store = SQLiteStore.open(path)
    store.close()
    with pytest.raises(StoreFailed):
        await store.commit([job(1)], [])
    with pytest.raises(StoreFailed):
        await store.unfinished()
    assert str(path) not in descriptors()


async def test_an_open_store_needs_no_more_descriptors(store: SQLiteStore) -> None:
    with no_descriptors_left():
        assert await store.list_jobs(Filter(), 10, 0) == ([], 0)
        assert await store.unfinished() == []
        await store.reserve(10)
        await store.commit([job(1)], [Change(1, created())])
        assert await store.list_jobs(Filter(labels=(("by", "eve"),), kind="scan"), 10, 0) == ([], 0)
        assert await store.unfinished() == [job(1)]


# Failures and other processes


async def test_an_aborted_write_changes_nothing(store: SQLiteStore, tmp_path: Path) -> None:
    await store.commit([job(1)], [Change(1, created())])
    with closing(other_process(tmp_path / "store.sqlite")) as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON changes WHEN NEW.offset = 3"
            " BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
        with pytest.raises(StoreFailed, match=r"^cannot use the database: see the daemon's log$"):
            await store.commit(
                [job(1, JobStatus.PROCESSING), job(2)], [Change(2, started()), Change(3, created(job_id(2)))]
            )
        assert await store.jobs([job_id(1), job_id(2)]) == {job_id(1): job(1)}
        assert await store.changes(0, 100, 100) == [Change(1, created())]
        db.execute("DROP TRIGGER full")
    await store.commit([job(1, JobStatus.PROCESSING)], [Change(3, started())])
    assert await store.unfinished() == [job(1, JobStatus.PROCESSING)]


async def test_a_failed_deletion_keeps_the_oldest_cursor(store: SQLiteStore, tmp_path: Path) -> None:
    await store.commit([job(1, JobStatus.FAILED, completed_at=NOW)], [Change(1, created())])
    with closing(other_process(tmp_path / "store.sqlite")) as db:
        db.execute("CREATE TRIGGER stuck BEFORE DELETE ON jobs BEGIN SELECT RAISE(ABORT, 'stuck'); END")
    with pytest.raises(StoreFailed, match="see the daemon's log"):
        await store.delete_finished(NOW + timedelta(days=1), 10)
    assert store.oldest_cursor == 0
    assert await store.changes(0, 100, 100) == [Change(1, created())]


async def test_a_long_deletion_stops_and_continues_later(store: SQLiteStore, tmp_path: Path) -> None:
    many = 2000
    await store.commit([job(number, JobStatus.FAILED, completed_at=NOW) for number in range(1, many + 1)], [])
    with closing(other_process(tmp_path / "store.sqlite")) as db:
        db.execute(
            "CREATE TRIGGER slow BEFORE DELETE ON jobs BEGIN"
            " INSERT INTO meta WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
            " SELECT 'slow', count(*) FROM n WHERE true ON CONFLICT DO NOTHING; END"
        )
    gone = await store.delete_finished(NOW + timedelta(days=1), many)
    assert 1 <= len(gone) < many / 4
    assert await store.list_jobs(Filter(), 0, 0) == ([], many - len(gone))
    gone += await store.delete_finished(NOW + timedelta(days=1), many)
    assert gone == [job_id(number) for number in range(1, len(gone) + 1)]


async def test_a_locked_file_fails_one_write(path: Path) -> None:
    with closing(SQLiteStore.open(path, busy_timeout=0.01)) as store, closing(other_process(path)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailed, match="locked"):
            await store.commit([job(1)], [])
        assert await store.unfinished() == []
        db.execute("COMMIT")
        await store.commit([job(1)], [])
        assert await store.unfinished() == [job(1)]


async def test_a_cancelled_commit_is_finished(store: SQLiteStore, path: Path) -> None:
    with closing(other_process(path)) as db:
        db.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.commit, [job(1)], [Change(1, created())])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            db.execute("COMMIT")
    assert await store.jobs([job_id(1)]) == {job_id(1): job(1)}


async def test_concurrent_writers_take_turns(store: SQLiteStore) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(1, 51):
            nursery.start_soon(store.commit, [job(number)], [Change(number, created(job_id(number)))])
            nursery.start_soon(store.unfinished)
    assert [found.created_offset for found in await store.unfinished()] == list(range(1, 51))


KILLED = """
import os, signal, sys, trio
from pathlib import Path
from progressd.store.base import Change
from progressd.store.sqlite import SQLiteStore
from support.samples import created, job

async def main():
    store = SQLiteStore.open(Path(sys.argv[1]))
    await store.reserve(5000)
    await store.commit([job(1)], [Change(1, created())])
    os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


async def test_commits_and_reservations_survive_a_kill(path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    done = await trio.run_process(
        [sys.executable, "-c", KILLED, str(path)], check=False, env={**os.environ, "PYTHONPATH": tests}
    )
    assert done.returncode == -signal.SIGKILL
    with closing(SQLiteStore.open(path)) as store:
        assert store.first_offset == 5000
        assert await store.unfinished() == [job(1)]
        assert await store.changes(0, 100, 100) == [Change(1, created())]


# The cost of a query

FINISHED = [status for status in JobStatus if status.finished]
Query = Callable[[SQLiteStore], Awaitable[object]]


async def plans(store: SQLiteStore, query: Query) -> list[list[str]]:
    """Return SQLite's plan for each statement of a query."""
    statements: list[str] = []
    for db in (store._reader, store._lister, store._writer):
        db.set_trace_callback(statements.append)
    await query(store)
    for db in (store._reader, store._lister, store._writer):
        db.set_trace_callback(None)
    explained = [
        [row[3] for row in store._reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        for statement in statements
        if statement.startswith(("SELECT", "DELETE", "UPDATE"))
    ]
    assert explained
    return explained


LONG = "USING PRIMARY KEY (key=? AND value=? AND status=? AND created_offset"


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (lambda store: store.unfinished(), "jobs_by_status"),
        (lambda store: store.jobs([job_id(1), job_id(2)]), "autoindex_jobs"),
        (lambda store: store.changes(5, 10, 10), "INTEGER PRIMARY KEY"),
        (lambda store: store.changes(5, 10, 10, job_id(1)), "changes_by_job"),
        (lambda store: store.changes_of_unfinished(10), "changes_by_job"),
        (lambda store: store.changes_of_unfinished(10), "jobs_by_status"),
        (lambda store: store.moved(5, 10, 9), "jobs_by_progress"),
        (lambda store: store.delete_finished(NOW, 10), "jobs_by_end (completed_at<?)"),
        (lambda store: store.delete([job_id(1)]), "autoindex_jobs"),
        (lambda store: store.delete([job_id(1)]), "changes_by_job"),
        (lambda store: store.last_seen(), "INTEGER PRIMARY KEY (rowid<?)"),
        (lambda store: store.batches([job_id(9)]), "autoindex_batches"),
        (lambda store: store.unfinished_batches(), "batches_by_status"),
        (lambda store: store.jobs_of_batch(job_id(9)), "jobs_by_batch"),
        (lambda store: store.counts(), "counts USING PRIMARY KEY (list=? AND value=?)"),
        (lambda store: store.list_jobs(Filter(), 10, 1000), "jobs_by_status (status=? AND rowid<?)"),
        (lambda store: store.list_jobs(Filter(), 10, 0), "counts USING PRIMARY KEY (list=? AND value=?)"),
        (lambda store: store.list_jobs(Filter(FINISHED), 10, 0), "jobs_by_status (status=? AND rowid<?)"),
        (
            lambda store: store.list_jobs(Filter(FINISHED, "scan"), 10, 0),
            "jobs_by_kind (kind=? AND status=? AND rowid<?)",
        ),
        (lambda store: store.list_jobs(Filter(labels=(("by", "eve"),)), 10, 0), LONG),
        (lambda store: store.list_jobs(Filter([JobStatus.FAILED], labels=(("by", "eve"),)), 10, 0), LONG),
        (lambda store: store.list_jobs(Filter(kind="scan", labels=(("by", "eve"),)), 10, 0), LONG),
        (
            lambda store: store.list_jobs(Filter(kind="job", labels=(("by", "eve"),)), 10, 0),
            "jobs_by_kind (kind=? AND status=? AND rowid=?)",
        ),
    ],
)
async def test_queries_use_indexes(store: SQLiteStore, query: Query, index: str) -> None:
    old = job(1, JobStatus.FAILED, labels={"by": "eve"}, completed_at=NOW - timedelta(days=1))
    await store.commit([old], [])
    explained = await plans(store, query)
    steps = [step for steps in explained for step in steps]
    assert any(index in step for step in steps)
    assert not [step for step in steps if re.match("SCAN (jobs|changes|labels|counts|batches|meta)", step)]
    in_order = [
        steps for steps in explained if any(re.search("(created_offset|rowid)<|jobs_by_end", step) for step in steps)
    ]
    assert not [step for steps in in_order for step in steps if "TEMP B-TREE FOR ORDER BY" in step]
