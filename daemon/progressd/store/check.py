"""Find what is wrong in the SQLite file, and mend it where that takes no new file."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from progressd.store.errors import NO_JSON, damaged, told_of
from progressd.store.offline import every_batch, every_change, every_job
from progressd.store.schema import NEW_ID, migrate, read_meta

MAX_FINDINGS: Final = 20  # problems of the file itself that are told
DERIVED: Final = (
    ("labels", "labelled", "the table by which jobs are found by label does not fit the jobs"),
    ("counts", "counted", "the counts of jobs do not fit the jobs"),
)
ORPHANS: Final = "FROM changes WHERE job_id NOT IN (SELECT id FROM jobs)"
NEWEST_OFFSET: Final = (
    "SELECT max(offset) FROM (SELECT offset FROM changes UNION ALL SELECT body ->> 'offset' FROM jobs"
    " UNION ALL SELECT max(progress_offset) FROM jobs UNION ALL SELECT body ->> 'offset' FROM batches"
    " UNION ALL SELECT max(offset) FROM deletions UNION ALL SELECT value FROM meta WHERE key = 'oldest_cursor')"
)
# Of the offsets given out, those of progress and of batches may be nowhere in the file. So it becomes a store of its
# own, as a copy does: a cursor from before is not to be taken for one of those that are given a second time.
RENEWAL: Final = f"UPDATE meta SET value = {NEW_ID} WHERE key = 'store_id'"


class StoreFinding(NamedTuple):
    """A sentence, and the SQL that mends it, None where only `recovery` helps."""

    sentence: str
    repair: str | None


def problems(db: sqlite3.Connection) -> Iterator[StoreFinding]:
    """All that is found; after damage to the file itself, or a row that cannot be read, nothing else is looked for."""
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
            f"offsets below {reserved} are said to be taken, and {newest} is",
            f"UPDATE meta SET value = {newest + 1} WHERE key = 'reserved'; {RENEWAL}",
        )


def repair(path: Path, found: StoreFinding) -> None:
    """Mend it in the file, in one transaction. Raises SettingsError; nothing has changed then."""
    with told_of(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(f"BEGIN IMMEDIATE; {found.repair}; COMMIT;")


def _changed_schema(db: sqlite3.Connection) -> list[str]:
    """The tables, indexes and views that are not as this version makes them; none for an older one."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
        migrate(new, 0)
        if new.execute("PRAGMA user_version").fetchone() != db.execute("PRAGMA user_version").fetchone():
            return []
        named = "SELECT name, sql FROM sqlite_schema"
        there = set(db.execute(named))
        return [f"{name} is not as it was made" for name, sql in new.execute(named) if (name, sql) not in there]


def _damage(db: sqlite3.Connection) -> list[str]:
    """What SQLite's own check says; it may itself stumble over the damage."""
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
    """The first job, change, batch and value that make no sense."""
    lines = list[str]()
    for look in (every_job, every_change, every_batch, lambda db: iter(read_meta(db))):
        try:
            for _ in look(db):
                pass
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
            lines.append(str(error))
    return lines


def _orphans(db: sqlite3.Connection) -> list[str]:
    """Changes without a job: there was one, which is lost."""
    [orphans] = db.execute(f"SELECT count(*) {ORPHANS}").fetchone()
    return [f"{orphans} changes are of jobs that do not exist"] if orphans else []


def _differ(db: sqlite3.Connection, one: str, other: str) -> bool:
    both_ways = f"SELECT * FROM {one} EXCEPT SELECT * FROM {other}", f"SELECT * FROM {other} EXCEPT SELECT * FROM {one}"
    return any(db.execute(f"SELECT EXISTS ({difference})").fetchone() == (1,) for difference in both_ways)
