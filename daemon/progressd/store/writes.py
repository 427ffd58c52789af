"""Write and delete jobs, changes and batches in the SQLite file."""

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from time import perf_counter
from typing import Final

import msgspec
from prometheus_client import Histogram

from progressd.core.batch import JobBatch
from progressd.core.job import Job
from progressd.store.base import Change, Deletion
from progressd.store.listing import AMONG, in_json

_encode = msgspec.json.Encoder().encode


def write(
    db: sqlite3.Connection, jobs: Collection[Job], changes: Sequence[Change], batches: Iterable[JobBatch]
) -> None:
    """Store jobs, changes and batches; in a transaction."""
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


DELETE_SECONDS: Final = 0.004  # that a delete transaction should take: other writes wait for it
FIRST_DELETE_BATCH: Final = 8  # jobs
MAX_DELETE_BATCH: Final = 64


class DeleteBatchSizer:
    """Chooses how many jobs a transaction deletes, at least one, so that it takes about `target` seconds."""

    def __init__(self, target: float = DELETE_SECONDS) -> None:
        self.jobs = FIRST_DELETE_BATCH
        self._target = target
        self.durations = Histogram(
            "progressd_store_delete_duration_seconds",
            "How long a deletion of finished jobs blocked other writes.",
            registry=None,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
        )

    def took(self, jobs: int, seconds: float) -> None:
        """Learn from a transaction. The number grows slowly, since the first transactions in a row say little."""
        self.durations.observe(seconds)
        self.jobs = max(1, min(int(jobs * self._target / seconds), self.jobs + 1 + self.jobs // 4, MAX_DELETE_BATCH))


def delete(
    db: sqlite3.Connection, jobs: Sequence[Job], deletion: Deletion | None = None, seconds: float = DELETE_SECONDS
) -> tuple[list[Job], int]:
    """Delete the first of some finished jobs, and more of them for half of `seconds`; in a transaction.

    Return the deleted jobs, and the smallest offset from which clients can resume. A `deletion` is stored for clients
    that resume, so it leaves that offset unchanged. Without it the stored deletions below the offset are deleted too.
    """
    deadline = perf_counter() + seconds / 2
    gone = list[Job]()
    [(oldest_cursor,)] = db.execute("SELECT value FROM meta WHERE key = 'oldest_cursor'")
    for job in jobs:
        [(newest,)] = db.execute("SELECT coalesce(max(offset), 0) FROM changes WHERE job_id = ?", (job.id,))
        if deletion is None:
            oldest_cursor = max(oldest_cursor, newest)
        db.execute("DELETE FROM changes WHERE job_id = ?", (job.id,))
        if db.execute("DELETE FROM jobs WHERE id = ?", (job.id,)).rowcount:  # else it was deleted meanwhile
            gone.append(job)
        if perf_counter() > deadline:
            break
    if deletion is None:
        db.execute("UPDATE meta SET value = ? WHERE key = 'oldest_cursor'", (oldest_cursor,))
        db.execute("DELETE FROM deletions WHERE offset <= ?", (oldest_cursor,))
    elif gone:
        db.execute("INSERT INTO deletions VALUES (?, ?)", (deletion.offset, _encode(deletion.message).decode()))
    batches = in_json({job.batch_id for job in gone if job.batch_id is not None})
    emptied = "NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.batch_id = batches.id)"
    db.execute(f"DELETE FROM batches WHERE id {AMONG} AND json_valid(body) AND {emptied}", (batches,))
    return gone, oldest_cursor
