"""Decode rows of the SQLite file into jobs, batches, changes and deletions.

SQLite does not check the content of a document, so a corrupted byte is detected only here. Every function raises
sqlite3.DatabaseError, as SQLite does for a damaged page.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from progressd.core.batch import JobBatch
from progressd.core.job import Job
from progressd.core.json import UNDECODABLE, reason_of
from progressd.core.messages import JobDeleted, StateChange
from progressd.store.base import Change, Deletion
from progressd.store.errors import UnreadableRow

# As BLOBs: for text that is not UTF-8, Python raises an error that does not name the row.
JOB: Final = "created_offset, CAST(id AS BLOB), CAST(body AS BLOB)"
BATCH: Final = JOB
DELETION: Final = "offset, CAST(body AS BLOB)"
CHANGE: Final = "offset, CAST(job_id AS BLOB), CAST(body AS BLOB)"

T = TypeVar("T")
Row: TypeAlias = tuple[int, bytes, bytes]
OnUnreadable: TypeAlias = Callable[[UnreadableRow], object]  # called for each skipped row
_decode_job = msgspec.json.Decoder(Job).decode
_decode_batch = msgspec.json.Decoder(JobBatch).decode
_decode_change = msgspec.json.Decoder(StateChange).decode
_decode_deletion = msgspec.json.Decoder(JobDeleted).decode


def job_of(row: Row) -> Job:
    """Return the job of a row with the columns JOB."""
    job = _decoded(_decode_job, row[2], "job", row[1])
    _require(job.created_offset == row[0] and job.id.encode() == row[1], "job", row)
    return job


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
    """Return the deletion of a row with the columns DELETION."""
    return Deletion(row[0], _decoded(_decode_deletion, row[1], "deletion", row[0]))


def readable(decode: Callable[[Any], T], rows: Iterable[Any], on_unreadable: OnUnreadable) -> Iterator[T]:
    """Decode the readable rows, and skip unreadable ones."""
    for row in rows:
        try:
            yield decode(row)
        except UnreadableRow as error:
            on_unreadable(error)


def _require(same: bool, what: str, row: Row) -> None:
    """Raise UnreadableRow unless the keys of a row match its document."""
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
