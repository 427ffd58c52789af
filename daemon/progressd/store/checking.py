"""What may be wrong in the SQLite file, and what mends it where that is more than salvage."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from progressd.store.failures import NO_JSON, damaged, told_of
from progressd.store.reading import every_job
from progressd.store.schema import NEW_ID

MOST: Final = 20  # problems of the file itself that are told
OF_INDEXES: Final = ("missing from index", "wrong # of entries in index", "non-unique entry in index")

DERIVED: Final = (
    ("labels", "labelled", "the table by which jobs are found by label does not fit the jobs"),
    ("counts", "counted", "the counts of jobs do not fit the jobs"),
)
ORPHANS: Final = "FROM changes WHERE job_id NOT IN (SELECT id FROM jobs)"
NEWEST_OFFSET: Final = (
    "SELECT max(offset) FROM (SELECT offset FROM changes UNION ALL SELECT body ->> 'offset' FROM jobs"
    " UNION ALL SELECT body ->> 'offset' FROM batches"
    " UNION ALL SELECT value FROM meta WHERE key = 'oldest_cursor')"
)
# Of the offsets given out, those of progress and of batches may be nowhere in the file. So it becomes a store of its
# own, as a copy does: a cursor from before is not to be taken for one of those that are given a second time.
RENEWAL: Final = f"UPDATE meta SET value = {NEW_ID} WHERE key = 'store_id'"


class Problem(NamedTuple):
    """A sentence, and the SQL that mends it, None where only salvage helps."""

    sentence: str
    repair: str | None


def problems(db: sqlite3.Connection) -> Iterator[Problem]:
    """All that is found; after damage to the file itself, or a job that cannot be read, nothing else is looked for."""
    damage = _damage(db) or _unreadable(db)
    if damage:
        only_indexes = all(any(words in found for words in OF_INDEXES) for found in damage)
        for found in damage:
            yield Problem(f"the database is damaged: {found}", "REINDEX" if only_indexes else None)
        return
    for table, view, sentence in DERIVED:
        if _differ(db, table, view):
            yield Problem(sentence, f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {view}")
    [orphans] = db.execute(f"SELECT count(*) {ORPHANS}").fetchone()
    if orphans:
        yield Problem(f"{orphans} changes are of jobs that do not exist", f"DELETE {ORPHANS}")
    [newest] = db.execute(NEWEST_OFFSET).fetchone()
    [reserved] = db.execute("SELECT value FROM meta WHERE key = 'reserved'").fetchone()
    if reserved <= newest:
        yield Problem(
            f"offsets below {reserved} are said to be taken, and {newest} is",
            f"UPDATE meta SET value = {newest + 1} WHERE key = 'reserved'; {RENEWAL}",
        )


def repair(path: Path, found: Problem) -> None:
    """Mend it in the file, in one transaction. Raises SettingsError; nothing has changed then."""
    with told_of(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(f"BEGIN IMMEDIATE; {found.repair}; COMMIT;")


def _damage(db: sqlite3.Connection) -> list[str]:
    """What SQLite's own check says; it may itself stumble over the damage."""
    lines = list[str]()
    try:
        for (text,) in db.execute(f"PRAGMA integrity_check({MOST})"):
            lines += text.splitlines()
    except sqlite3.DatabaseError as error:
        if not damaged(error):
            raise
        if str(error) == NO_JSON:
            lines += _unreadable(db)
        lines = lines or [str(error)]
    return [line for line in lines if line != "ok" and not line.startswith("***")]


def _unreadable(db: sqlite3.Connection) -> list[str]:
    """The first job that makes no sense."""
    try:
        for _ in every_job(db):
            pass
    except sqlite3.DatabaseError as error:
        if not damaged(error):
            raise
        return [str(error)]
    return []


def _differ(db: sqlite3.Connection, one: str, other: str) -> bool:
    both_ways = f"SELECT * FROM {one} EXCEPT SELECT * FROM {other}", f"SELECT * FROM {other} EXCEPT SELECT * FROM {one}"
    return any(db.execute(f"SELECT EXISTS ({difference})").fetchone() == (1,) for difference in both_ways)
