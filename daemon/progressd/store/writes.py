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
    """Store jobs, changes and batches. Call this in a transaction."""
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


DELETE_SECONDS: Final = 0.004  # target duration of a delete transaction, for which other writes wait
FIRST_DELETE_BATCH: Final = 8  # jobs
MAX_DELETE_BATCH: Final = 64


class DeleteBatchSizer:
    """Choose the number of jobs that a transaction deletes, at least one, to take about `target` seconds."""

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
        """Adapt the number of jobs to a transaction. It grows slowly, since the first measurements are unreliable."""
        self.durations.observe(seconds)
        self.jobs = max(1, min(int(jobs * self._target / seconds), self.jobs + 1 + self.jobs // 4, MAX_DELETE_BATCH))


def delete(
    db: sqlite3.Connection, jobs: Sequence[Job], deletion: Deletion | None = None, seconds: float = DELETE_SECONDS
) -> tuple[list[Job], int]:
    """Delete the first of some finished jobs, and further jobs for half of `seconds`. Call this in a transaction.

    Return the deleted jobs, and the smallest offset from which clients can resume. A `deletion` is stored for clients
    that resume, so that offset does not change. Without a `deletion`, stored deletions up to the offset are deleted.
    """
    deadline = perf_counter() + seconds / 2
    gone = list[Job]()
    [(oldest_cursor,)] = db.execute("SELECT value FROM meta WHERE key = 'oldest_cursor'")
    for job in jobs:
        [(newest,)] = db.execute("SELECT coalesce(max(offset), 0) FROM changes WHERE job_id = ?", (job.id,))
        if deletion is None:
            oldest_cursor = max(oldest_cursor, newest)
        db.execute("DELETE FROM changes WHERE job_id = ?", (job.id,))
        if db.execute("DELETE FROM jobs WHERE id = ?", (job.id,)).rowcount:  # 0 if the job was already deleted
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
