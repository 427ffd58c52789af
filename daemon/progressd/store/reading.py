"""The SQLite file read from outside of the daemon, in pages, so that what is read for long holds up nobody."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from progressd.core.errors import SettingsError
from progressd.core.job import Job
from progressd.store.documents import JOB, job_of
from progressd.store.failures import told_of
from progressd.store.schema import inspect

PAGE: Final = 1000  # jobs read at once


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, whether a daemon writes or not. Raises SettingsError, with the file's name."""
    with told_of(path):
        if not inspect(path):
            raise SettingsError(f"there is no store {path}")
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            yield db


def store_id(db: sqlite3.Connection) -> str:
    """What names the store in cursors."""
    [name] = db.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
    return str(name)


def has_job(db: sqlite3.Connection, job_id: str) -> bool:
    """Whether there is such a job."""
    return db.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone() is not None


def every_job(db: sqlite3.Connection) -> Iterator[Job]:
    """All jobs, oldest first; those that come while this goes on may be among them."""
    after = 0
    query = f"SELECT created_offset, {JOB} FROM jobs WHERE created_offset > ? ORDER BY created_offset LIMIT ?"
    while rows := db.execute(query, (after, PAGE)).fetchall():
        yield from (job_of(row) for _, *row in rows)
        [after, *_] = rows[-1]
