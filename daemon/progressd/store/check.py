"""Check the SQLite file, and repair problems that do not need a new file."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from progressd.store.errors import NO_JSON, damaged, file_errors
from progressd.store.offline import every_batch, every_change, every_job
from progressd.store.schema import NEW_ID, migrate, read_meta

MAX_FINDINGS: Final = 20  # reported problems of the file itself
DERIVED: Final = (
    ("labels", "labelled", "the index of labels does not match the jobs"),
    ("counts", "counted", "the counts of jobs do not match the jobs"),
)
ORPHANS: Final = "FROM changes WHERE job_id NOT IN (SELECT id FROM jobs)"
NEWEST_OFFSET: Final = (
    "SELECT max(offset) FROM (SELECT offset FROM changes UNION ALL SELECT body ->> 'offset' FROM jobs"
    " UNION ALL SELECT max(progress_offset) FROM jobs UNION ALL SELECT body ->> 'offset' FROM batches"
    " UNION ALL SELECT max(offset) FROM deletions UNION ALL SELECT value FROM meta WHERE key = 'oldest_cursor')"
)
# Some offsets of progress and batches may be missing from the file, so they may be assigned a second time. With a new
# store id, an old cursor cannot match a new offset. A copy of the store receives a new id for the same reason.
RENEWAL: Final = f"UPDATE meta SET value = {NEW_ID} WHERE key = 'store_id'"


class StoreFinding(NamedTuple):
    """A problem as a sentence, and the SQL that repairs it. `repair`: None if only `recovery` helps."""

    sentence: str
    repair: str | None


def problems(db: sqlite3.Connection) -> Iterator[StoreFinding]:
    """Yield all problems. If the file is damaged or a row is unreadable, further checks are skipped."""
    damage = _changed_schema(db) or _damage(db) or _unreadable(db) or _orphans(db)
    if damage:
        yield from (StoreFinding(f"the database is damaged: {found}", None) for found in damage)
        return
    for table, view, sentence in DERIVED:
        if _differ(db, table, view):
            yield StoreFinding(sentence, f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {view}")
    [newest] = db.execute(NEWEST_OFFSET).fetchone()
    reserved = read_meta(db).reserved
    if reserved <= newest:
        yield StoreFinding(
            f"offsets below {reserved} are reserved, but {newest} is used",
            f"UPDATE meta SET value = {newest + 1} WHERE key = 'reserved'; {RENEWAL}",
        )


def repair(path: Path, found: StoreFinding) -> None:
    """Repair the file in one transaction. Raises SettingsError; then nothing has changed."""
    with file_errors(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(f"BEGIN IMMEDIATE; {found.repair}; COMMIT;")


def _changed_schema(db: sqlite3.Connection) -> list[str]:
    """Return the tables, indexes and views that differ from the current schema; none for an older version."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
        migrate(new, 0)
        if new.execute("PRAGMA user_version").fetchone() != db.execute("PRAGMA user_version").fetchone():
            return []
        named = "SELECT name, sql FROM sqlite_schema"
        there = set(db.execute(named))
        return [f"{name} differs from the schema" for name, sql in new.execute(named) if (name, sql) not in there]


def _damage(db: sqlite3.Connection) -> list[str]:
    """Return the results of SQLite's integrity check. The damage may make the check itself fail."""
    lines = list[str]()
    try:
        for (text,) in db.execute(f"PRAGMA integrity_check({MAX_FINDINGS})"):
            lines += text.splitlines()
    except sqlite3.DatabaseError as error:
        if not damaged(error):
            raise
        if str(error) == NO_JSON:
            lines += _unreadable(db)
        lines = lines or [str(error)]
    return [line for line in lines if line != "ok" and not line.startswith("***")]


def _unreadable(db: sqlite3.Connection) -> list[str]:
    """Return the errors of the first unreadable job, change, batch and value."""
    lines = list[str]()
    for read in (every_job, every_change, every_batch, lambda db: iter(read_meta(db))):
        try:
            for _ in read(db):
                pass
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
            lines.append(str(error))
    return lines


def _orphans(db: sqlite3.Connection) -> list[str]:
    """Return a sentence about changes whose job is lost, if there are any."""
    [orphans] = db.execute(f"SELECT count(*) {ORPHANS}").fetchone()
    return [f"{orphans} changes belong to jobs that do not exist"] if orphans else []


def _differ(db: sqlite3.Connection, one: str, other: str) -> bool:
    both_ways = f"SELECT * FROM {one} EXCEPT SELECT * FROM {other}", f"SELECT * FROM {other} EXCEPT SELECT * FROM {one}"
    return any(db.execute(f"SELECT EXISTS ({difference})").fetchone() == (1,) for difference in both_ways)
