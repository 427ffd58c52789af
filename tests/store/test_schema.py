"""Older, newer, damaged and foreign files."""

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import trio
from progressd.core.errors import SettingsError
from progressd.core.messages import JobStatus
from progressd.store.base import Change
from progressd.store.schema import APPLICATION_ID, MIGRATIONS, old_copy, require_search
from progressd.store.sqlite import SQLiteStore
from support.samples import created, job, job_id, started

NEWEST = len(MIGRATIONS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progressd.db"


def pragma(path: Path, name: str) -> object:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"PRAGMA {name}").fetchone()[0]


def make(path: Path, *statements: str) -> bytes:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.executescript(statement)
    return path.read_bytes()


def make_old(path: Path, version: int) -> None:
    """Make a file of an old version, with one started job."""
    bodies = [encoded(job(1, JobStatus.PROCESSING, labels={"by": "eve"})), encoded(created()), encoded(started())]
    make(path, "PRAGMA journal_mode = WAL", *MIGRATIONS[:version], f"PRAGMA user_version = {version}")
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO jobs (created_offset, id, body) VALUES (1, ?, ?)", (job_id(1), bodies[0]))
        db.executemany("INSERT INTO changes VALUES (?, ?, ?)", [(1, job_id(1), bodies[1]), (2, job_id(1), bodies[2])])
        db.execute("UPDATE meta SET value = 77 WHERE key = 'reserved'")
        db.commit()


def encoded(thing: object) -> str:
    return msgspec.json.encode(thing).decode()


def schema_of(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


def refused(path: Path) -> str:
    """Return the error; the files are not changed and nothing is left open."""

    def contents() -> dict[str, bytes]:  # SQLite leaves a -shm file and an empty log
        files = [file for file in path.parent.iterdir() if file.is_file() and not file.name.endswith("-shm")]
        return {file.name: file.read_bytes() for file in files if file.stat().st_size}

    before = contents()
    with pytest.raises(SettingsError) as caught:
        SQLiteStore.open(path)
    assert contents() == before
    assert str(path) not in {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink()}
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sqlite_without_an_index_of_trigrams_is_an_error() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        require_search(db)
        denied = sqlite3.SQLITE_CREATE_VTABLE
        db.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action == denied else sqlite3.SQLITE_OK)
        with pytest.raises(SettingsError, match=r"SQLite 3\.[\d.]+ of this Python has no FTS5 index of trigrams"):
            require_search(db)


# Older


@pytest.mark.parametrize("version", range(1, NEWEST))
async def test_an_older_file_is_copied_and_migrated(path: Path, version: int) -> None:
    make_old(path, version)
    with closing(SQLiteStore.open(path)) as store:
        assert await store.unfinished() == [job(1, JobStatus.PROCESSING, labels={"by": "eve"})]
        assert await store.changes(0, 10, 10) == [Change(1, created()), Change(2, started())]
        assert store.first_offset == 77
    assert pragma(path, "user_version") == NEWEST
    assert pragma(path, "application_id") == APPLICATION_ID
    copy = old_copy(path, version)
    assert copy.name == f"progressd.db.v{version}"
    assert pragma(copy, "user_version") == version
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT id FROM jobs").fetchall() == [(job_id(1),)]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {file.name for file in path.parent.iterdir()} == {path.name, copy.name}
    SQLiteStore.open(path.with_name("new.db")).close()
    assert schema_of(path) == schema_of(path.with_name("new.db"))


def test_a_current_file_is_not_copied(path: Path) -> None:
    SQLiteStore.open(path).close()
    SQLiteStore.open(path).close()
    assert list(path.parent.iterdir()) == [path]
    assert pragma(path, "application_id") == APPLICATION_ID


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.touch()
    SQLiteStore.open(path).close()
    assert pragma(path, "user_version") == NEWEST


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
def test_a_log_without_a_database_is_an_error(path: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    with closing(SQLiteStore.open(origin / path.name)) as store:
        trio.run(store.commit, [job()], [])
        for file in origin.iterdir():
            shutil.copy(file, tmp_path)
    spoil(path)
    assert f"is empty or missing, but its WAL {path}-wal is not: restore a backup of the database" in refused(path)


def test_a_failed_migration_changes_nothing(path: Path) -> None:
    make_old(path, NEWEST - 2)
    before = make(path, "CREATE TABLE runs (a)")  # as the last of the two migrations does
    with pytest.raises(SettingsError, match="table runs already exists"):
        SQLiteStore.open(path)
    assert path.read_bytes() == before
    make(path, "DROP TABLE runs")
    SQLiteStore.open(path).close()
    assert pragma(path, "user_version") == NEWEST


def test_no_copy_means_no_migration(path: Path) -> None:
    make_old(path, 1)
    old_copy(path, 1).mkdir()  # the copy cannot replace a directory
    assert f"cannot write {old_copy(path, 1)}: Is a directory" in refused(path)
    old_copy(path, 1).rmdir()
    SQLiteStore.open(path).close()


# Migrations in child processes, each of which is killed after three times as many steps as the one before. Prints how
# each has ended; the last one was not killed.
KILLED = """
import os, signal, sqlite3, sys
from itertools import count
from pathlib import Path
from progressd.store.sqlite import SQLiteStore

connect = sqlite3.connect

def open_until_killed(countdown):
    def step():
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args, **named):
        db = connect(*args, **named)
        db.set_progress_handler(step, 40)
        return db

    sqlite3.connect = traced
    SQLiteStore.open(Path(sys.argv[1])).close()
    os._exit(0)

for power in count():
    if not (pid := os.fork()):
        open_until_killed(3**power)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(status)
    if status >= 0:
        break
"""


async def test_a_killed_migration_loses_nothing(path: Path) -> None:
    make_old(path, 1)
    done = await trio.run_process([sys.executable, "-c", KILLED, str(path)], capture_stdout=True)
    lines = done.stdout.decode().splitlines()  # and those of the log
    *killed, last = (int(line) for line in lines if line.lstrip("-").isdigit())
    assert last == 0
    assert len(killed) > 1
    assert set(killed) == {-signal.SIGKILL}
    with closing(SQLiteStore.open(path)) as store:
        assert await store.unfinished() == [job(1, JobStatus.PROCESSING, labels={"by": "eve"})]
    assert {file.name for file in path.parent.iterdir()} == {path.name, old_copy(path, 1).name}


# Newer, damaged or foreign files


def test_a_newer_schema_is_rejected(path: Path) -> None:
    SQLiteStore.open(path).close()
    make(path, f"PRAGMA user_version = {NEWEST + 1}")
    assert f"has schema version {NEWEST + 1}" in refused(path)
    assert "start a newer progressd" in refused(path)


@pytest.mark.parametrize(
    "made",
    [
        ("CREATE TABLE songs (title)",),
        ("CREATE TABLE meta (a)", "CREATE TABLE jobs (a)", "CREATE TABLE changes (a)"),
        ("CREATE TABLE songs (title)", "PRAGMA user_version = 1"),
        ("CREATE TABLE songs (title)", "PRAGMA user_version = 1000"),
        ("PRAGMA application_id = 4711",),
        ("PRAGMA application_id = 4711", *MIGRATIONS[:1]),
    ],
)
def test_a_database_of_another_program_is_rejected(path: Path, made: tuple[str, ...]) -> None:
    make(path, *made)
    assert "is the database of another program" in refused(path)


@pytest.mark.parametrize("content", [b"not a database", b"x" * 100_000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_non_database_file_is_rejected(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "restore a backup" in refused(path)


@pytest.mark.parametrize(
    "spoil", [lambda whole: whole[:100] + os.urandom(3996) + whole[4096:], lambda whole: whole[:5000]]
)
def test_a_damaged_or_truncated_file_is_rejected(path: Path, spoil: Callable[[bytes], bytes]) -> None:
    SQLiteStore.open(path).close()
    path.write_bytes(spoil(path.read_bytes()))
    assert "is damaged" in refused(path)


async def test_an_interrupted_transaction_is_undone(path: Path, tmp_path: Path) -> None:
    """A power cut interrupts the creation of the file, before it is in WAL mode."""
    other = tmp_path / "cut-off.db"
    make(other, *MIGRATIONS, f"PRAGMA user_version = {NEWEST}")
    with closing(sqlite3.connect(other, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")  # half of the transaction is in the file already
        db.execute("BEGIN")
        for number in range(1000):
            db.execute("INSERT INTO changes VALUES (?, ?, ?)", (number, job_id(number), "{}"))
        for ending in ("", "-journal"):
            path.with_name(path.name + ending).write_bytes(other.with_name(other.name + ending).read_bytes())
    with closing(SQLiteStore.open(path)) as store:
        assert await store.changes(-1, 10**9, 10) == []
