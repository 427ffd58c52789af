"""Read the SQLite file from another process, in pages, so that a long read does not block the daemon."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from progressd.core.batch import JobBatch
from progressd.core.errors import SettingsError
from progressd.core.job import Job
from progressd.store.base import Change
from progressd.store.errors import file_errors
from progressd.store.rows import BATCH, CHANGE, JOB, batch_of, change_of, job_of
from progressd.store.schema import inspect, read_meta

PAGE: Final = 1000  # rows read at once


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a read-only connection, even while a daemon writes. Raises SettingsError with the file name."""
    with file_errors(path):
        if not inspect(path):
            raise SettingsError(f"there is no store {path}")
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
