"""Write and delete jobs, changes and batches in the SQLite file."""

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from time import perf_counter
from typing import Final

import msgspec

from progressd.core.batch import JobBatch
from progressd.core.job import Job
from progressd.store.base import Change, Deletion
from progressd.store.listing import AMONG, in_json

_encode = msgspec.json.Encoder().encode


def write(
    db: sqlite3.Connection, jobs: Collection[Job], changes: Sequence[Change], batches: Iterable[JobBatch]
) -> None:
    """Keep the jobs and batches as they are now and the changes; in a transaction."""
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


TARGET_SECONDS: Final = (
    0.004  # seconds that a transaction is to take altogether: whoever writes may have to wait for it
)
FIRST_STEP: Final = 8  # jobs in the first one
MAX_STEP: Final = 64


class DeleteBatchSizer:
    """Choose how many jobs a transaction deletes, so that it takes about TARGET_SECONDS; at least one."""

    def __init__(self) -> None:
        self.jobs = FIRST_STEP
        self.longest = 0.0  # seconds that one took, with its commit

    def took(self, jobs: int, seconds: float) -> None:
        """Learn from a transaction. It grows only slowly, since what the first ones of a row take says little."""
        self.longest = max(self.longest, seconds)
        self.jobs = max(1, min(int(jobs * TARGET_SECONDS / seconds), self.jobs + 1 + self.jobs // 4, MAX_STEP))


def delete(db: sqlite3.Connection, jobs: Sequence[Job], deletion: Deletion | None = None) -> tuple[list[Job], int]:
    """Delete at least the first of some finished jobs, and no more after half of TARGET_SECONDS; in a transaction.

    Return those that were deleted, and the smallest offset from which a client can still resume. A `deletion` tells
    those who resume, so it leaves that offset as it is; else the deletions below it are deleted as well.
    """
    deadline = perf_counter() + TARGET_SECONDS / 2
    gone = list[Job]()
    [(oldest_cursor,)] = db.execute("SELECT value FROM meta WHERE key = 'oldest_cursor'")
    for job in jobs:
        [(newest,)] = db.execute("SELECT coalesce(max(offset), 0) FROM changes WHERE job_id = ?", (job.id,))
        if deletion is None:
            oldest_cursor = max(oldest_cursor, newest)
        db.execute("DELETE FROM changes WHERE job_id = ?", (job.id,))
        if db.execute("DELETE FROM jobs WHERE id = ?", (job.id,)).rowcount:  # not by somebody else meanwhile
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
