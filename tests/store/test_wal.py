"""The write-ahead log stays short, and no commit waits for that."""

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from progressd.admin import maintenance
from progressd.store.base import Change
from progressd.store.connection import Checkpointer, WALLimits
from progressd.store.sqlite import SQLiteStore
from structlog.testing import capture_logs
from support.samples import created, job, job_id
from support.serving import ServedDaemon
from support.waiting import eventually
from trio.testing import MockClock


def log_size(tmp_path: Path) -> int:
    return (tmp_path / "store.sqlite-wal").stat().st_size


async def write(store: SQLiteStore, first: int, count: int) -> None:
    """Commit jobs, each with about 10 pages of the log."""
    for number in range(first, first + count):
        text = "x" * 20_000
        await store.commit([job(number, options={"text": text})], [Change(number, created(job_id(number)))])


QUICK = WALLimits(interval=0.01, checkpoint=100_000, restart=400_000, warning=4_000_000)


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore.open(tmp_path / "store.sqlite", wal=QUICK)) as store:
        yield store


async def test_the_log_restarts_during_many_writes(quick: SQLiteStore, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quick.run)
        longest = 0
        for first in range(1, 1001, 10):
            await write(quick, first, 10)
            longest = max(longest, log_size(tmp_path))
        nursery.cancel_scope.cancel()
    assert longest < 13_000_000  # of 27 MB that were written
    assert len(await quick.unfinished()) == 1000


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection set up like the store's, to a database that the clock does not wait for."""
    with closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)) as db:
        db.executescript(f"""
            PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {QUICK.restart};
            CREATE TABLE jobs (text BLOB)
        """)
        yield db


@asynccontextmanager
async def checkpointing(tmp_path: Path, writer: sqlite3.Connection) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Run a Checkpointer. Yield a function that writes a number of bytes and waits for the check after it."""

    async def call(function: Callable[[], None]) -> None:
        function()

    with closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)) as db:
        checkpointer = Checkpointer(tmp_path / "store.sqlite", db, QUICK)

        async def write(size: int) -> None:
            writer.execute("INSERT INTO jobs VALUES (zeroblob(?))", (size,))
            checkpointer.written.set()
            await trio.sleep(2 * QUICK.interval)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpointer.run, call, call)
            yield write
            nursery.cancel_scope.cancel()


async def test_a_long_log_file_is_truncated(
    tmp_path: Path, writer: sqlite3.Connection, autojump_clock: MockClock
) -> None:
    async with checkpointing(tmp_path, writer) as write:
        await write(1_000_000)
        assert log_size(tmp_path) > 1_000_000
        await write(1)
        assert log_size(tmp_path) <= QUICK.restart


async def test_a_long_reader_is_logged_once(
    tmp_path: Path, writer: sqlite3.Connection, autojump_clock: MockClock
) -> None:
    with capture_logs() as logs, closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        async with checkpointing(tmp_path, writer) as write:
            for _ in range(10):
                await write(1_000_000)
    assert log_size(tmp_path) > 2 * QUICK.warning
    assert [line["event"] for line in logs] == [
        "the WAL grows: another program has been reading the database for a long time"
    ]


async def test_an_unreadable_log_is_not_fatal(tmp_path: Path) -> None:
    directory, away = tmp_path / "state", tmp_path / "away"
    directory.mkdir()
    with closing(SQLiteStore.open(directory / "store.sqlite", wal=QUICK)) as store, capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            directory.rename(away)
            directory.touch()
            nursery.start_soon(store.run)
            await store.commit([job(1)], [])
            await eventually(lambda: logs)
            directory.unlink()
            away.rename(directory)
            assert list(await store.jobs([job_id(1)])) == [job_id(1)]
            nursery.cancel_scope.cancel()
    assert (logs[0]["event"], "Not a directory" in logs[0]["error"]) == ("cannot checkpoint the WAL", True)


async def test_commits_do_not_wait_for_checkpoints(store: SQLiteStore) -> None:
    assert store._writer.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


async def test_a_long_log_file_is_truncated_by_the_writer(quick: SQLiteStore) -> None:
    assert quick._writer.execute("PRAGMA journal_size_limit").fetchone() == (QUICK.restart,)


def locks_of(process: int, path: Path) -> set[str]:
    """Return the kinds of locks that a process has on a file."""
    of_file = f":{path.stat().st_ino}"
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {line[3] for line in lines if len(line) == 8 and int(line[4]) == process and line[5].endswith(of_file)}


def test_the_daemon_keeps_its_locks(served: ServedDaemon) -> None:
    """Without locks another process believes that it is the first one, and truncates the -shm file."""
    database = served.state_dir / "progressd.db"
    for name in ("progressd.db", "progressd.db-shm"):
        assert "READ" in locks_of(served.process.pid, database.with_name(name))


async def test_a_check_keeps_the_locks(tmp_path: Path) -> None:
    path = tmp_path / "progressd.db"
    with closing(SQLiteStore.open(path)) as store:
        await store.reserve(100)
        await store.commit([job(1, pipeline="pdf")], [Change(1, created(job_id(1)))])
    with closing(maintenance.check(tmp_path)) as found:
        assert "there is no" in next(found).sentence
        assert "READ" in locks_of(os.getpid(), path)


async def test_offsets_in_a_damaged_log_are_not_reused(tmp_path: Path) -> None:
    """SQLite ends the log at the damaged frame."""
    path = tmp_path / "alive" / "progressd.db"
    path.parent.mkdir()
    with closing(SQLiteStore.open(path)) as store:
        await store.reserve(100)
        for number in (1, 2, 3):
            await store.commit([job(number)], [Change(number, created(job_id(number)))])
        shutil.copytree(path.parent, tmp_path / "killed")
    log = tmp_path / "killed" / "progressd.db-wal"
    content = bytearray(log.read_bytes())
    content[32 + 24 + 100] ^= 1  # in the first page
    log.write_bytes(content)
    with closing(SQLiteStore.open(tmp_path / "killed" / "progressd.db")) as store:
        assert store.first_offset == 100
        assert await store.unfinished() == []
