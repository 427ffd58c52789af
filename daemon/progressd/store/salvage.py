"""What can still be read of a damaged SQLite file, in a new one; the damaged one is kept, and what is lost is said."""

import mmap
import os
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from progressd.core.batch import JobBatch
from progressd.core.decoding import UNDECODABLE, reason_of
from progressd.core.errors import InvalidInput
from progressd.core.events import checked_job_id
from progressd.core.job import Job
from progressd.ownership import new_file
from progressd.store.aside import put_aside
from progressd.store.checking import DERIVED, NEWEST_OFFSET, ORPHANS
from progressd.store.documents import change_of
from progressd.store.failures import UnreadableRow, damaged, told_of
from progressd.store.frames import frames, log_of
from progressd.store.pages import Pages, Record
from progressd.store.schema import LAST, migrate
from progressd.syncing import sync

OF_BATCHES: Final = set(JobBatch.__struct_fields__)

# What the damaged file names: rows by the index of their ids, or since they cannot be read, and changes.
NAMED: Final = """
    CREATE TEMP TABLE named (id TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID;
    CREATE TEMP TABLE told (place INTEGER, job_id TEXT, PRIMARY KEY (place, job_id)) WITHOUT ROWID;
"""
# A page that was free, where nobody can tell any more which are, may have a row as it once was.
KEEP: Final = """
    INSERT INTO {table} (created_offset, id, body) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body
    WHERE excluded.created_offset = {table}.created_offset AND excluded.id = {table}.id
        AND coalesce(excluded.body ->> 'offset', 0) > coalesce({table}.body ->> 'offset', 0)
"""
LOST_ROWS: Final = """
    SELECT id, min(place), max(job) FROM (
        SELECT id, place, FALSE AS job FROM named UNION ALL SELECT job_id, offset, TRUE FROM changes
        UNION ALL SELECT job_id, place, FALSE FROM told
    ) WHERE id NOT IN (SELECT id FROM jobs) AND id NOT IN (SELECT id FROM batches) GROUP BY id ORDER BY min(place)
"""
LOST_CHANGES: Final = """
    SELECT place, job_id FROM told
    WHERE place NOT IN (SELECT offset FROM changes) AND job_id IN (SELECT id FROM jobs) ORDER BY place
"""


class Salvaged(NamedTuple):
    """Where the damaged file is now, and a sentence for each thing that is lost."""

    kept: Path
    lost: list[str]


def salvage(path: Path) -> Salvaged | None:
    """Put a new store in the place of a damaged one that nobody has open; None, and nothing has changed, without a job.

    The new one is a store of its own, as a copy is. Whatever cuts this off, one of the two is there, or the damaged one
    is where the next start or repair puts it back. Raises SettingsError where there is no room, for example; nothing
    has changed then.
    """
    path = path.resolve()
    new = path.with_name(path.name + ".part")
    try:
        with told_of(path):
            if not path.exists():
                os.close(new_file(path))  # as if it were empty: the log may have all pages
            lost = _rescue(path, new)
            return None if lost is None else Salvaged(put_aside(path, new), lost)
    finally:
        with suppress(OSError):
            new.unlink()


def _rescue(path: Path, new: Path) -> list[str] | None:
    new.unlink(missing_ok=True)  # of a repair that was killed
    os.close(new_file(new, like=path))
    with closing(sqlite3.connect(new, isolation_level=None)) as db:
        migrate(db, 0)
        db.executescript(f"PRAGMA synchronous = OFF; {NAMED} BEGIN;")
        with path.open("rb") as file, _content(file) as content:
            log = frames(log_of(path))
            pages = Pages(content, {frame.page: frame.content for frame in log if frame.whole})
            for record in pages.records():
                _take(db, record)
            unreadable = pages.unreadable() + sum(not frame.whole for frame in log)
        if db.execute("SELECT NOT EXISTS (SELECT 1 FROM jobs)").fetchone() == (1,):
            return None
        lost = list(_lost(db))
        if unreadable:
            lost.append(f"{unreadable} pages are missing or unreadable; what only they named is not listed")
        db.execute(f"DELETE {ORPHANS}")
        for table, view, _ in DERIVED:
            db.execute(f"INSERT INTO {table} SELECT * FROM {view}")
        db.execute(f"UPDATE meta SET value = max(value, 1 + ({NEWEST_OFFSET})) WHERE key = 'reserved'")
        db.execute("COMMIT")
    sync(new)
    return lost


def _content(file: BufferedReader) -> AbstractContextManager[bytes | mmap.mmap]:
    empty = os.stat(file.fileno()).st_size == 0
    return nullcontext(b"") if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _take(db: sqlite3.Connection, record: Record) -> None:
    """Keep a row of jobs, changes or batches, or the name of one."""
    match record:
        case Record(int(place), (None, bytes(name), bytes(body))):
            if not _take_row(db, place, name, body) and (row_id := _id(name)) is not None:
                table, columns = ("told", "(job_id, place)") if _is_change(body) else ("named", "(id, place)")
                db.execute(f"INSERT OR IGNORE INTO {table} {columns} VALUES (?, ?)", (row_id, place))
        case Record(None, (b"reserved", int(reserved))) if reserved < LAST:
            db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'reserved'", (reserved,))
        case Record(None, (bytes(name), int(place))) if (row_id := _id(name)) is not None:
            db.execute("INSERT OR IGNORE INTO named VALUES (?, ?)", (row_id, place))
        case Record(None, (bytes(name), int(place), int(same))) if place == same and (row_id := _id(name)) is not None:
            db.execute("INSERT OR IGNORE INTO told VALUES (?, ?)", (place, row_id))


def _take_row(db: sqlite3.Connection, place: int, name: bytes, body: bytes) -> bool:
    """Whether the row could be read, and is where it says it is."""
    try:
        statement, key, row_id = _statement(place, name, body)
        taken = db.execute(statement, (key, row_id, body.decode())).rowcount
    except UnicodeDecodeError:
        return False
    except sqlite3.DatabaseError as error:  # not when there is no room, for example
        if not damaged(error):
            raise
        return False
    return taken == 1 and (key, row_id.encode()) == (place, name)


def _statement(place: int, name: bytes, body: bytes) -> tuple[str, int, str]:
    """What keeps a row, by what it is, and its keys, as its document says. Raises sqlite3.DatabaseError."""
    if _is_change(body):
        change = change_of((place, name, body))
        _require_plausible("change", place, change.message.job_id, place)
        return "INSERT OR IGNORE INTO changes VALUES (?, ?, ?)", place, change.message.job_id
    with suppress(*UNDECODABLE):
        job = msgspec.json.decode(body, type=Job)
        _require_plausible("job", job.created_offset, job.id, place)
        return KEEP.format(table="jobs"), job.created_offset, job.id
    try:
        batch = msgspec.json.decode(body, type=JobBatch)
        fields = msgspec.json.decode(body, type=dict[str, object]).keys()
    except UNDECODABLE as error:
        raise UnreadableRow("row", place, reason_of(error)) from error
    if fields - OF_BATCHES:
        raise UnreadableRow("job", batch.id, "it does not say what it is")
    _require_plausible("batch", batch.created_offset, batch.id, place)
    return KEEP.format(table="batches"), batch.created_offset, batch.id


def _require_plausible(what: str, key: int, row_id: str, place: int) -> None:
    if not 0 < key < LAST or _id(row_id.encode()) is None:
        raise UnreadableRow(what, place, "its keys cannot be right")


def _is_change(body: bytes) -> bool:
    return b"type" in body[:9]


def _id(name: bytes) -> str | None:
    try:
        return checked_job_id(name.decode())
    except (InvalidInput, UnicodeDecodeError):
        return None


def _lost(db: sqlite3.Connection) -> Iterator[str]:
    for row_id, place, is_job in db.execute(LOST_ROWS):
        yield f"{'job' if is_job else 'job or batch'} {row_id}, from offset {place} on, cannot be read and is lost"
    for place, job_id in db.execute(LOST_CHANGES):
        yield f"the change at offset {place} of job {job_id} cannot be read and is lost"
