"""Backups are complete, consistent and checked, and replace no file."""

import os
import signal
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio
from progressd.core.errors import Conflict, SettingsError
from progressd.core.messages import JobStatus
from progressd.store.base import Change
from progressd.store.offline import backup
from progressd.store.sqlite import SQLiteStore
from support.growth import fill
from support.samples import created, job, job_id, started


def files(directory: Path) -> set[str]:
    """Return the files, without those of SQLite beside an open database."""
    return {file.name for file in directory.iterdir() if not file.name.endswith(("-shm", "-wal"))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progressd.db"


async def test_a_backup_during_writes_is_consistent(path: Path, tmp_path: Path) -> None:
    fill(path, 5000)
    numbers = iter(range(10_000, 10**6))

    async def write(store: SQLiteStore) -> None:
        for number in numbers:
            await store.commit(
                [job(5 * number, JobStatus.PROCESSING)],
                [Change(5 * number, created(job_id(5 * number))), Change(5 * number + 1, started(job_id(5 * number)))],
            )

    with closing(SQLiteStore.open(path)) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, store)
            for name in ("a", "b", "c"):
                size = await trio.to_thread.run_sync(backup, path, tmp_path / name)
                assert size == (tmp_path / name).stat().st_size
            nursery.cancel_scope.cancel()
    for name in ("a", "b", "c"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        with closing(sqlite3.connect(tmp_path / name)) as db:
            jobs, changes = (db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("jobs", "changes"))
            assert changes == 4 * 5000 + 2 * (jobs - 5000)
            assert db.execute("SELECT sum(jobs) FROM counts WHERE list = 'all'").fetchone() == (jobs,)
    assert jobs > 5000
    assert files(tmp_path) == {path.name, "a", "b", "c"}


async def test_a_backup_has_the_same_jobs(path: Path, tmp_path: Path) -> None:
    with closing(SQLiteStore.open(path)) as store:
        await store.reserve(100)
        await store.commit([job(1)], [Change(1, created())])
        backup(path, tmp_path / "copy")
        with closing(SQLiteStore.open(tmp_path / "copy")) as copy:
            assert await copy.unfinished() == [job(1)]
            assert copy.first_offset == 100
            assert copy.id != store.id


def test_a_backup_overwrites_no_file(path: Path, tmp_path: Path) -> None:
    SQLiteStore.open(path).close()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("precious", "dangling", path.name):
        with pytest.raises(Conflict, match=f"{name} exists already"):
            backup(path, tmp_path / name)
    backup(path, tmp_path / "new")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_damaged_store_is_not_backed_up(path: Path, tmp_path: Path) -> None:
    fill(path, 2000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"cannot back up the database: it is damaged .* run progressd check"):
        backup(path, tmp_path / "copy")
    assert files(tmp_path) == {path.name}


def test_a_failed_backup_has_a_clear_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"there is no database {path}"):
        backup(path, tmp_path / "copy")
    SQLiteStore.open(path).close()
    with pytest.raises(SettingsError, match="No such file or directory"):
        backup(path, tmp_path / "missing" / "copy")
    path.write_bytes(b"something else" * 100)
    with pytest.raises(SettingsError, match="is damaged or is not a database"):
        backup(path, tmp_path / "copy")


KILLED = """
import os, signal, sys, sqlite3
from pathlib import Path
from progressd.store.offline import backup

class Copy(sqlite3.Connection):
    def execute(self, statement, *values):
        if sys.argv[3] in statement:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, *values)

connect = sqlite3.connect
sqlite3.connect = lambda *args, **named: connect(*args, **named, factory=Copy)
backup(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("where", ["journal_mode", "UPDATE meta", "integrity_check"])
async def test_a_killed_backup_leaves_no_copy(path: Path, tmp_path: Path, where: str) -> None:
    fill(path, 100)
    target = tmp_path / "copy"
    done = await trio.run_process([sys.executable, "-c", KILLED, str(path), str(target), where], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not await trio.Path(target).exists()
    with pytest.raises(Conflict, match=r"copy\.part exists: another backup writes it, or was killed"):
        backup(path, target)
    await trio.Path(tmp_path / "copy.part").unlink()
    backup(path, target)
