"""Writing jobs, changes and batches to the SQLite file."""

import sqlite3
from collections.abc import Collection, Iterable, Sequence

import msgspec

from progressd.core.batch import JobBatch
from progressd.core.job import Job
from progressd.store import lists
from progressd.store.base import Change

_encode = msgspec.json.Encoder().encode


def keep(db: sqlite3.Connection, jobs: Collection[Job], changes: Sequence[Change], batches: Iterable[JobBatch]) -> None:
    """Keep the jobs and batches as they are now and the changes; in a transaction."""
    lists.keep(db, jobs)
    _put(db, "jobs", jobs)
    rows = [(change.offset, change.message.job_id, _encode(change.message).decode()) for change in changes]
    db.executemany("INSERT INTO changes (offset, job_id, body) VALUES (?, ?, ?)", rows)
    _put(db, "batches", batches)


def _put(db: sqlite3.Connection, table: str, documents: Iterable[Job | JobBatch]) -> None:
    db.executemany(
        f"INSERT INTO {table} (created_offset, id, body) VALUES (?, ?, ?)"
        " ON CONFLICT (created_offset) DO UPDATE SET body = excluded.body",
        [(one.created_offset, one.id, _encode(one).decode()) for one in documents],
    )
