"""Recover a damaged SQLite file into a new file with the `sqlite3` shell, and list the lost data."""

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, NamedTuple

import msgspec

from progressd.core.batch import JobBatch
from progressd.core.errors import InvalidInput, SettingsError
from progressd.core.eta import Run
from progressd.core.events import checked_job_id
from progressd.core.job import Job
from progressd.core.json import UNDECODABLE
from progressd.core.messages import StateChange
from progressd.core.progress import Step
from progressd.store.errors import damaged, file_errors
from progressd.store.offline import NEWEST_OFFSET, ORPHANS
from progressd.store.schema import MAX_OFFSET, migrate
from progressd.system.fs import new_file, sync

SHELL: Final = "sqlite3"  # the name of the program, and of the Debian package that contains it
KEPT: Final = ".damaged"  # suffix of the kept file, followed by a number
OF_BATCHES: Final = set(JobBatch.__struct_encode_fields__)
# The recovered tables and their columns, apart from those that are computed from the body. If a column is added after
# computed ones, `.recover` of SQLite 3.46 fails.
COLUMNS: Final = {
    "jobs": ("created_offset", "id", "body"),
    "changes": ("offset", "job_id", "body"),
    "batches": ("created_offset", "id", "body"),
    "runs": ("id", "key", "body"),
    "timelines": ("created_offset", "body"),
}
# Not recovered: the new store has its own rows.
LEFT_OUT: Final = {"meta", "labels", "counts", "deletions", "texts", "search", "unindexed", "removed"}
FIELDS: Final = 3  # number of fields in a row of jobs, changes, batches or runs
DERIVED_ROW: Final = re.compile(rb"INSERT OR IGNORE INTO '(?:meta|labels|counts|texts|search_\w+|unindexed|removed)'")
ROW: Final = re.compile(rb"INSERT .*? VALUES ?(\(.*\));", re.DOTALL)

# Names of rows, from the indexes of the damaged file and from unreadable rows.
NAMES: Final = """
    CREATE TEMP TABLE named_rows (id TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID;
    CREATE TEMP TABLE named_changes (place INTEGER, job_id TEXT, PRIMARY KEY (place, job_id)) WITHOUT ROWID;
"""
LOST_ROWS: Final = """
    SELECT id, min(place) FROM (
        SELECT * FROM named_rows UNION ALL SELECT job_id, place FROM named_changes
        UNION ALL SELECT job_id, offset FROM changes
    ) WHERE id NOT IN (SELECT id FROM jobs) AND id NOT IN (SELECT id FROM batches) GROUP BY id ORDER BY min(place)
"""
LOST_CHANGES: Final = """
    SELECT job_id, count(*) FROM named_changes
    WHERE place NOT IN (SELECT offset FROM changes) AND job_id IN (SELECT id FROM jobs) GROUP BY job_id
"""


class Recovered(NamedTuple):
    """The new path of the damaged file, and a sentence for each lost record."""

    kept: Path
    lost: list[str]


def recover(path: Path) -> Recovered:
    """Replace a damaged store with a new one. No daemon may have the store open.

    The new store has a new id, so that old cursors are invalid. The damaged file stays in place until the last step, a
    rename. An interrupted repair starts again from the beginning.

    Raises:
        SettingsError: no job can be recovered, or the shell or disk space is missing; the damaged file is not changed.
    """
    path = path.resolve()
    new = path.with_name(path.name + ".part")
    shell = shutil.which(SHELL)
    if shell is None:
        raise SettingsError(f"cannot repair {path}: {SHELL} is not installed (sudo apt install {SHELL})")
    try:
        with file_errors(path):
            _move_wal_into(path)
            new.unlink(missing_ok=True)
            os.close(new_file(new, like=path))
            lost = _fill(new, path, shell)
            sync(new)
            return Recovered(_replace(path, new), lost)
    finally:
        with suppress(OSError):
            new.unlink()


def _move_wal_into(path: Path) -> None:
    """Empty the write-ahead log (WAL), which SQLite would otherwise apply to the new file. Raises SettingsError."""
    wal = path.with_name(path.name + "-wal")
    if not wal.exists():
        return
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.DatabaseError as error:
        if not damaged(error):
            raise
    if wal.exists() and wal.stat().st_size:
        raise SettingsError(f"cannot repair {path}: another program is using {wal.name} (stop that program first)")


def _fill(new: Path, path: Path, shell: str) -> list[str]:
    """Write all readable records to a new file, and return a sentence for each lost record."""
    with closing(sqlite3.connect(new, isolation_level=None)) as db:
        migrate(db, 0)
        db.executescript(f"PRAGMA synchronous = OFF; {NAMES} BEGIN;")
        complaint = _read(db, path, shell)
        if db.execute("SELECT NOT EXISTS (SELECT 1 FROM jobs)").fetchone() == (1,):
            raise SettingsError(f"cannot repair {path}: no job in it can be read{complaint}: restore a backup")
        of_jobs = "SELECT id, created_offset FROM jobs INDEXED BY sqlite_autoindex_jobs_1"
        db.executemany("INSERT OR IGNORE INTO named_rows VALUES (?, ?)", _names(path, of_jobs))
        of_changes = "SELECT job_id, offset FROM changes INDEXED BY changes_by_job"
        db.executemany("INSERT OR IGNORE INTO named_changes (job_id, place) VALUES (?, ?)", _names(path, of_changes))
        lost = list(_lost(db))
        if complaint or not _whole(path):
            lost.append(f"pages of the database are damaged{complaint}: more may be lost than is listed")
        db.execute(f"DELETE {ORPHANS}")
        db.execute("DELETE FROM timelines WHERE created_offset NOT IN (SELECT created_offset FROM jobs)")
        db.execute(f"UPDATE meta SET value = 1 + ({NEWEST_OFFSET}) WHERE key = 'reserved'")
        db.execute("COMMIT")
    return lost


def _read(db: sqlite3.Connection, path: Path, shell: str) -> str:
    """Store the rows that `.recover` prints as SQL. Return the error of `.recover` if it stops early, or else ""."""
    command = [shell, "-init", os.devnull, _immutable(path), ".recover --ignore-freelist"]
    with TemporaryFile() as complaint:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaint) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not DERIVED_ROW.match(line) and (found := ROW.match(line)):
                    values = found[1].decode(errors="backslashreplace")  # invalid JSON, so the row is reported as lost
                    [row] = db.execute(f"VALUES {values}")
                    # columns of lost_and_found: the root, the page, the number of fields, the rowid, and the fields
                    _keep(db, (row[3], *row[5:7]) if len(row) > FIELDS and row[2] == FIELDS else row)
        complaint.seek(0)
        return f" ({SHELL}: {complaint.read().decode(errors='replace').strip()})" if process.returncode else ""


def _keep(db: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    """Insert a readable row, or the name of an unreadable job, change or batch."""
    match row:
        case (int(), str()):
            _keep_if_readable(db, "timelines", row, tuple[Step, ...])
        case (int(), str(), str(body)) if body.startswith("["):  # the others are JSON objects
            _keep_if_readable(db, "runs", row, Run)
        case (int(place), str(name), str(body)):
            change = '"type"' in body[:9]
            try:
                db.execute(*_insertion(place, name, body, change=change))
            except (*UNDECODABLE, InvalidInput):
                table, columns = ("named_changes", "job_id, place") if change else ("named_rows", "id, place")
                db.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES (?, ?)", (name, place))


def _keep_if_readable(db: sqlite3.Connection, table: str, row: tuple[Any, ...], type_: Any) -> None:
    """Insert a timeline or an earlier run if it can be read. Without it, all jobs are still whole."""
    with suppress(*UNDECODABLE):
        msgspec.json.decode(row[-1], type=type_)
        db.execute(_insert_into(table), row)


def _insertion(place: int, name: str, body: str, *, change: bool) -> tuple[str, tuple[int, str, str]]:
    """Return the statement and its values. If key and document differ, the document is used. Raises InvalidInput."""
    if change:
        row_id, newest, table = msgspec.json.decode(body, type=StateChange).job_id, place, "changes"
        if row_id != name:
            raise InvalidInput(f"a change of job {row_id} is stored as one of job {name}")
    elif msgspec.json.decode(body, type=dict[str, object]).keys() - OF_BATCHES:
        job = msgspec.json.decode(body, type=Job)
        row_id, place, newest, table = job.id, job.created_offset, max(job.offset, job.progress_offset), "jobs"
    else:
        batch = msgspec.json.decode(body, type=JobBatch)
        row_id, place, newest, table = batch.id, batch.created_offset, batch.offset, "batches"
    if not (0 < place < MAX_OFFSET and newest < MAX_OFFSET):
        raise InvalidInput(f"offset {place} is impossible")
    return _insert_into(table), (place, checked_job_id(row_id), body)


def _insert_into(table: str) -> str:
    columns = COLUMNS[table]
    return f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _names(path: Path, query: str) -> Iterator[tuple[Any, ...]]:
    """Yield the readable entries of an index of the damaged file."""
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(_immutable(path), uri=True)) as db:
        yield from db.execute(query)


def _whole(path: Path) -> bool:
    """Return whether SQLite finds no damage in the pages of the file."""
    try:
        with closing(sqlite3.connect(_immutable(path), uri=True)) as db:
            return db.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False


def _immutable(path: Path) -> str:
    """Return a URI with which SQLite creates no additional files."""
    return f"{path.as_uri()}?immutable=1"


def _lost(db: sqlite3.Connection) -> Iterator[str]:
    for row_id, place in db.execute(LOST_ROWS):
        with suppress(InvalidInput):
            yield f"job or batch {checked_job_id(row_id)}, from offset {place} on, cannot be read and is lost"
    for job_id, changes in db.execute(LOST_CHANGES):
        yield f"job {job_id}: {changes} of its changes cannot be read and are lost"


def _replace(path: Path, new: Path) -> Path:
    """Replace the damaged file with the new one, and return the new path of the damaged file."""
    names = (path.with_name(f"{path.name}{KEPT}{number}") for number in count(1))
    kept = next(name for name in names if not os.path.lexists(name) or (name.exists() and name.samefile(path)))
    # If it is the same file, a repair was interrupted before the replacement.
    with suppress(FileExistsError):
        os.link(path, kept)
    sync(path.parent)
    os.replace(new, path)
    sync(path.parent)
    return kept
