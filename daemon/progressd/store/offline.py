"""Work on the SQLite file from another process: read it, check and repair it, and back it up while a daemon runs."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from progressd.core.batch import JobBatch
from progressd.core.errors import Conflict, SettingsError
from progressd.core.job import Job
from progressd.store.base import Change
from progressd.store.errors import NO_JSON, damaged, file_errors
from progressd.store.rows import BATCH, CHANGE, JOB, batch_of, change_of, job_of
from progressd.store.schema import NEW_ID, REINDEX, inspect, migrate, read_meta
from progressd.system.fs import new_file, sync

PAGE: Final = 1000  # rows read at once, so that a long read does not block the daemon
COPY_PAGES: Final = 1000  # pages copied between two checks for a signal
STEPS: Final = 10_000  # steps of `integrity_check` between two checks for a signal, some milliseconds
MAX_FINDINGS: Final = 20  # maximum number of reported problems of the file itself
DERIVED: Final = (
    ("labels", "labelled", "the index of labels does not match the jobs", ""),
    ("counts", "counted", "the counts of jobs do not match the jobs", ""),
    ("texts", "searched", "the texts for searches do not match the jobs", f"; {REINDEX}"),
)
ORPHANS: Final = "FROM changes WHERE job_id NOT IN (SELECT id FROM jobs)"
NEWEST_OFFSET: Final = (
    "SELECT max(offset) FROM (SELECT offset FROM changes UNION ALL SELECT body ->> 'offset' FROM jobs"
    " UNION ALL SELECT max(progress_offset) FROM jobs UNION ALL SELECT body ->> 'offset' FROM batches"
    " UNION ALL SELECT max(offset) FROM deletions UNION ALL SELECT value FROM meta WHERE key = 'oldest_cursor')"
)
# Some offsets of progress and batches may be missing from the file, so they may be assigned a second time. With a new
# store id, an old cursor cannot match a new offset.
RENEWAL: Final = f"UPDATE meta SET value = {NEW_ID} WHERE key = 'store_id'"


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a read-only connection, even while a daemon writes. Raises SettingsError with the file name."""
    with file_errors(path):
        if not inspect(path):
            raise SettingsError(f"there is no database {path}")
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            yield db


def store_id(db: sqlite3.Connection) -> str:
    """Return the id of the store in cursors."""
    return read_meta(db).store_id


def has_job(db: sqlite3.Connection, job_id: str) -> bool:
    """Return whether a job exists."""
    return db.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone() is not None


def ids_from(db: sqlite3.Connection, beginning: str) -> list[str]:
    """Return the job ids that start with `beginning`, which is in lower case."""
    query = "SELECT id FROM jobs WHERE id >= ? AND id < ? ORDER BY id"
    return [job_id for (job_id,) in db.execute(query, (beginning, beginning + "g"))]


def every_job(db: sqlite3.Connection) -> Iterator[Job]:
    """Yield all jobs, oldest first; jobs added during the iteration may be included. Raises sqlite3.DatabaseError."""
    return map(job_of, _every_row(db, JOB, "jobs", "created_offset"))


def every_change(db: sqlite3.Connection) -> Iterator[Change]:
    """Yield all changes, as `every_job` yields jobs."""
    return map(change_of, _every_row(db, CHANGE, "changes", "offset"))


def every_batch(db: sqlite3.Connection) -> Iterator[JobBatch]:
    """Yield all batches, as `every_job` yields jobs."""
    return map(batch_of, _every_row(db, BATCH, "batches", "created_offset"))


def _every_row(db: sqlite3.Connection, columns: str, table: str, key: str) -> Iterator[Any]:
    after = -(2**63)
    query = f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?"
    while rows := db.execute(query, (after, PAGE)).fetchall():
        yield from rows
        [after, *_] = rows[-1]


class StoreFinding(NamedTuple):
    """A problem as a sentence, and the SQL that repairs it. `repair`: None if only `recovery` helps."""

    sentence: str
    repair: str | None


def problems(db: sqlite3.Connection) -> Iterator[StoreFinding]:
    """Yield all problems. If the file is damaged or a row is unreadable, further checks are skipped."""
    damage = _changed_schema(db) or _damage(db) or _unreadable(db) or _orphans(db)
    if damage:
        yield from (StoreFinding(f"the database is damaged: {found}", None) for found in damage)
        return
    for table, view, sentence, more in DERIVED:
        if _differ(db, table, view):
            yield StoreFinding(sentence, f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {view}{more}")
    [newest] = db.execute(NEWEST_OFFSET).fetchone()
    reserved = read_meta(db).reserved
    if reserved <= newest:
        yield StoreFinding(
            f"offsets below {reserved} are reserved, but {newest} is used",
            f"UPDATE meta SET value = {newest + 1} WHERE key = 'reserved'; {RENEWAL}",
        )


def repair(path: Path, found: StoreFinding) -> None:
    """Repair the file in one transaction. Raises SettingsError; then nothing has changed."""
    with file_errors(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(f"BEGIN IMMEDIATE; {found.repair}; COMMIT;")


def _changed_schema(db: sqlite3.Connection) -> list[str]:
    """Return the tables, indexes and views that differ from the current schema; none for an older version."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
        migrate(new, 0)
        if new.execute("PRAGMA user_version").fetchone() != db.execute("PRAGMA user_version").fetchone():
            return []
        named = "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'search!_%' ESCAPE '!'"  # SQLite's own tables
        there = set(db.execute(named))
        return [f"{name} differs from the schema" for name, sql in new.execute(named) if (name, sql) not in there]


def _damage(db: sqlite3.Connection) -> list[str]:
    """Return the results of SQLite's integrity check. The damage may make the check itself fail."""
    lines = list[str]()
    try:
        for (text,) in db.execute(f"PRAGMA integrity_check({MAX_FINDINGS})"):
            lines += text.splitlines()
    except sqlite3.DatabaseError as error:
        if not damaged(error):
            raise
        if str(error) == NO_JSON:
            lines += _unreadable(db)
        lines = lines or [str(error)]
    return [line for line in lines if line != "ok" and not line.startswith("***")]


def _unreadable(db: sqlite3.Connection) -> list[str]:
    """Return the errors of the first unreadable job, change, batch and value."""
    lines = list[str]()
    for read in (every_job, every_change, every_batch, lambda db: iter(read_meta(db))):
        try:
            for _ in read(db):
                pass
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
            lines.append(str(error))
    return lines


def _orphans(db: sqlite3.Connection) -> list[str]:
    """Return a sentence about changes whose job is lost, if there are any."""
    [orphans] = db.execute(f"SELECT count(*) {ORPHANS}").fetchone()
    return [f"{orphans} changes belong to jobs that do not exist"] if orphans else []


def _differ(db: sqlite3.Connection, one: str, other: str) -> bool:
    both_ways = f"SELECT * FROM {one} EXCEPT SELECT * FROM {other}", f"SELECT * FROM {other} EXCEPT SELECT * FROM {one}"
    return any(db.execute(f"SELECT EXISTS ({difference})").fetchone() == (1,) for difference in both_ways)


def backup(path: Path, target: Path) -> int:
    """Copy the store to a new file, check the copy, and return its size in bytes.

    Raises Conflict if the file exists, SettingsError if the store cannot be read or the copy cannot be written.
    """
    if os.path.lexists(target):
        raise Conflict(f"{target} exists already: a backup overwrites no file")
    with reading(path) as db:
        copy(db, target, checked=True)
    return target.stat().st_size


def copy(db: sqlite3.Connection, target: Path, *, checked: bool = False) -> None:
    """Copy the current database to `target`, through a file with the suffix `.part`. `checked`: check the copy.

    The copy has a new store id. A daemon that continues with the copy assigns some offsets a second time, and old
    cursors must not match these offsets. Raises SettingsError, Conflict, sqlite3.DatabaseError for a damaged store.
    """
    partial = target.with_name(f"{target.name}.part")
    try:
        if not checked:
            partial.unlink(missing_ok=True)  # left by an earlier start of the daemon
        os.close(new_file(partial))
        try:
            _write(db, partial, checked=checked)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        sync(target.parent)
    except FileExistsError:
        raise Conflict(f"{partial} exists: another backup writes it, or was killed (delete the file)") from None
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, sqlite3.Error) and damaged(error):
            raise
        raise SettingsError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error


def _write(db: sqlite3.Connection, partial: Path, *, checked: bool) -> None:
    with closing(sqlite3.connect(partial, isolation_level=None)) as copied:
        copied.execute("PRAGMA journal_mode = OFF")  # if anything fails, the copy is deleted
        _copy_pages(db, copied)
        copied.execute("PRAGMA journal_mode = MEMORY")  # creates no journal file
        copied.execute(RENEWAL)
        if checked:
            _check(copied)
    sync(partial)


def _copy_pages(db: sqlite3.Connection, copied: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    try:
        db.execute(
            "SELECT 1 FROM meta"
        ).fetchall()  # starts a read transaction, so that a write does not restart the backup
        db.backup(copied, pages=COPY_PAGES, progress=lambda *_: None)  # a Python call, in which signals are handled
    finally:
        db.rollback()


def _check(db: sqlite3.Connection) -> None:
    db.set_progress_handler(lambda: None, STEPS)  # a Python call, as above
    [found] = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        problem = found.splitlines()[-1]
        raise SettingsError(f"cannot back up the database: it is damaged ({problem}); run progressd check")
