"""The rows of the SQLite file: decode them into jobs, batches, changes and deletions; write and delete them.

SQLite does not check the content of a document, so a corrupted byte is detected only here. Every `…_of` raises
sqlite3.DatabaseError, as SQLite does for a damaged page.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from progressd.core.batch import JobBatch
from progressd.core.eta import MAX_RUNS, RUNS_PER_KEY, KeyedRun, Run
from progressd.core.job import Job
from progressd.core.json import UNDECODABLE, reason_of
from progressd.core.messages import JobDeleted, StateChange
from progressd.core.progress import Step
from progressd.store.base import Change, Deletion
from progressd.store.errors import UnreadableRow

# As BLOBs: for text that is not UTF-8, Python raises an error that does not name the row.
JOB: Final = "created_offset, CAST(id AS BLOB), CAST(body AS BLOB)"
JOB_AND_STEPS: Final = (
    f"{JOB}, (SELECT CAST(body AS BLOB) FROM timelines WHERE timelines.created_offset = jobs.created_offset)"
)
BATCH: Final = JOB
DELETION: Final = "offset, CAST(body AS BLOB)"
CHANGE: Final = "offset, CAST(job_id AS BLOB), CAST(body AS BLOB)"
RUN: Final = "id, CAST(key AS BLOB), CAST(body AS BLOB)"
AMONG: Final = "IN (SELECT value FROM json_each(?))"  # not limited by the number of parameters of a statement
DELETE_SECONDS: Final = 0.004  # target duration of a delete transaction, for which other writes wait

T = TypeVar("T")
Row: TypeAlias = tuple[int, bytes, bytes]
OnUnreadable: TypeAlias = Callable[[UnreadableRow], object]  # called for each skipped row
_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job).decode
_decode_steps = msgspec.json.Decoder(tuple[Step, ...]).decode
_decode_batch = msgspec.json.Decoder(JobBatch).decode
_decode_change = msgspec.json.Decoder(StateChange).decode
_decode_run = msgspec.json.Decoder(Run).decode
_decode_deletion = msgspec.json.Decoder(JobDeleted).decode


def job_of(row: Row) -> Job:
    """Return the job of a row with the columns JOB."""
    job = _decoded(_decode_job, row[2], "job", row[1])
    _require(job.created_offset == row[0] and job.id.encode() == row[1], "job", row)
    return job


def job_with_steps_of(row: tuple[int, bytes, bytes, bytes | None]) -> Job:
    """Return the job of a row with the columns JOB_AND_STEPS."""
    job = job_of(row[:3])
    return job if row[3] is None else replace(job, steps=_decoded(_decode_steps, row[3], "timeline", row[1]))


def batch_of(row: Row) -> JobBatch:
    """Return the batch of a row with the columns BATCH."""
    batch = _decoded(_decode_batch, row[2], "batch", row[1])
    _require(batch.created_offset == row[0] and batch.id.encode() == row[1], "batch", row)
    return batch


def change_of(row: Row) -> Change:
    """Return the change of a row with the columns CHANGE."""
    message = _decoded(_decode_change, row[2], "change", row[0])
    _require(message.job_id.encode() == row[1], "change", row)
    return Change(row[0], message)


def deletion_of(row: tuple[int, bytes]) -> Deletion:
    """Decode a deletion from a row with the columns DELETION."""
    return Deletion(row[0], _decoded(_decode_deletion, row[1], "deletion", row[0]))


def run_of(row: Row) -> KeyedRun:
    """Decode a run from a row with the columns RUN."""
    return KeyedRun(_text(row[1]), _decoded(_decode_run, row[2], "run", row[0]))


def readable(decode: Callable[[Any], T], rows: Iterable[Any], on_unreadable: OnUnreadable) -> Iterator[T]:
    """Decode the readable rows, and skip unreadable ones."""
    for row in rows:
        try:
            yield decode(row)
        except UnreadableRow as error:
            on_unreadable(error)


def _require(same: bool, what: str, row: Row) -> None:
    """Raise UnreadableRow if the keys of a row differ from its JSON document."""
    if not same:
        name = row[0] if what == "change" else row[1]
        raise UnreadableRow(what, _text(name), "its key and its document differ")


def _decoded(decode: Callable[[bytes], T], body: bytes, what: str, name: bytes | int) -> T:
    try:
        return decode(body)
    except UNDECODABLE as error:
        raise UnreadableRow(what, _text(name), reason_of(error)) from error


def _text(name: bytes | int) -> str:
    return str(name) if isinstance(name, int) else name.decode(errors="replace")


def in_json(values: Iterable[object]) -> str:
    """Return the parameter for AMONG."""
    return _encode(list(values)).decode()


def write(
    db: sqlite3.Connection,
    jobs: Collection[Job],
    changes: Sequence[Change],
    batches: Iterable[JobBatch],
    runs: Sequence[KeyedRun] = (),
) -> None:
    """Store jobs, changes, batches and runs. Call this in a transaction."""
    timed = [job for job in jobs if job.steps]
    _put(db, "jobs", [replace(job, steps=()) if job.steps else job for job in jobs] if timed else jobs)
    if timed:
        db.executemany(
            "INSERT INTO timelines (created_offset, body) VALUES (?, ?) ON CONFLICT DO UPDATE SET body = excluded.body"
            " WHERE body <> excluded.body",
            [(job.created_offset, _encode(job.steps).decode()) for job in timed],
        )
    rows = [(change.offset, change.message.job_id, _encode(change.message).decode()) for change in changes]
    db.executemany("INSERT INTO changes (offset, job_id, body) VALUES (?, ?, ?)", rows)
    _put(db, "batches", batches)
    for one in runs:
        row = db.execute("INSERT INTO runs (key, body) VALUES (?, ?)", (one.key, _encode(one.run).decode())).lastrowid
        assert row is not None
        db.execute("DELETE FROM runs WHERE id <= ?", (row - MAX_RUNS,))
        older = "SELECT id FROM runs WHERE key = ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        db.execute(f"DELETE FROM runs WHERE key = ? AND id <= ({older})", (one.key, one.key, RUNS_PER_KEY))


def _put(db: sqlite3.Connection, table: str, documents: Iterable[Job | JobBatch]) -> None:
    db.executemany(
        f"INSERT INTO {table} (created_offset, id, body) VALUES (?, ?, ?)"
        " ON CONFLICT (created_offset) DO UPDATE SET body = excluded.body",
        [(one.created_offset, one.id, _encode(one).decode()) for one in documents],
    )


def delete(
    db: sqlite3.Connection, jobs: Sequence[Job], deletion: Deletion | None = None, seconds: float = DELETE_SECONDS
) -> tuple[list[Job], int]:
    """Delete the first of these finished jobs, and more for half of `seconds`. Call this in a transaction.

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
        db.execute(
            "INSERT INTO deletions (offset, body) VALUES (?, ?)", (deletion.offset, _encode(deletion.message).decode())
        )
    batches = in_json({job.batch_id for job in gone if job.batch_id is not None})
    emptied = "NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.batch_id = batches.id)"
    db.execute(f"DELETE FROM batches WHERE id {AMONG} AND json_valid(body) AND {emptied}", (batches,))
    return gone, oldest_cursor
