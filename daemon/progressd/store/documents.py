"""Jobs, batches and changes as rows of the SQLite file: what to select of each, and what it says.

Of what is within a document SQLite checks nothing: a byte that the disk has changed shows only here. Every function
raises sqlite3.DatabaseError, as SQLite itself does for a page that is damaged.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from progressd.core.batch import JobBatch
from progressd.core.decoding import UNDECODABLE, reason_of
from progressd.core.job import Job
from progressd.core.messages import StateChange
from progressd.store.base import Change
from progressd.store.failures import UnreadableRow

# As BLOBs, since Python reads no text that is not UTF-8, and does not say of which row it is.
JOB: Final = "CAST(id AS BLOB), CAST(body AS BLOB)"
BATCH: Final = JOB
CHANGE: Final = "offset, CAST(body AS BLOB)"

T = TypeVar("T")
Told: TypeAlias = Callable[[UnreadableRow], object]  # hears of each row that is passed over
_decode_job = msgspec.json.Decoder(Job).decode
_decode_batch = msgspec.json.Decoder(JobBatch).decode
_decode_change = msgspec.json.Decoder(StateChange).decode


def job_of(row: tuple[bytes, bytes]) -> Job:
    """The job of a row with JOB."""
    return _decoded(_decode_job, row[1], "job", row[0].decode(errors="replace"))


def batch_of(row: tuple[bytes, bytes]) -> JobBatch:
    """The batch of a row with BATCH."""
    return _decoded(_decode_batch, row[1], "batch", row[0].decode(errors="replace"))


def change_of(row: tuple[int, bytes]) -> Change:
    """The change of a row with CHANGE."""
    return Change(row[0], _decoded(_decode_change, row[1], "change", row[0]))


def whole(decode: Callable[[Any], T], rows: Iterable[Any], told: Told) -> Iterator[T]:
    """What the rows say, but for those that cannot be read."""
    for row in rows:
        try:
            yield decode(row)
        except UnreadableRow as error:
            told(error)


def _decoded(decode: Callable[[bytes], T], body: bytes, what: str, name: object) -> T:
    try:
        return decode(body)
    except UNDECODABLE as error:
        raise UnreadableRow(what, name, reason_of(error)) from error
