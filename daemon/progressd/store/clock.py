"""The time that retention goes by, kept in the SQLite file, and the places in the stream that were noted at times.

They tell what a job's own times cannot, where it has met a clock that was wrong: when it ended at the earliest.
"""

import json
import sqlite3
from datetime import datetime, timedelta
from typing import Final

MARKS: Final = 100  # places that stay noted, the last ones
_NONSENSE: Final = (ValueError, TypeError, RecursionError)  # what reading says of it
SET: Final = "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"


def kept_time(db: sqlite3.Connection) -> datetime | None:
    """What was kept last; None also where the disk has made nonsense of it."""
    rows = db.execute("SELECT value FROM meta WHERE key = 'time'").fetchall()
    try:
        return _time_of(rows[0][0]) if rows else None
    except _NONSENSE:
        return None


def keep_time(db: sqlite3.Connection, time: datetime, spacing: float, sure: bool) -> None:
    """Keep a time; and note the place that comes next, unless one was noted less than `spacing` seconds before.

    `sure`: the clock says so too, so that places that were noted as of later were noted under one that was ahead.
    """
    db.execute(SET, ("time", time.isoformat()))
    marks = [(place, at) for place, at in _marks(db) if at <= time or not sure]
    if marks and time < marks[-1][1] + timedelta(seconds=spacing):
        return
    newest = "SELECT offset FROM jobs WHERE completed_at IS NOT NULL ORDER BY offset DESC LIMIT 1"
    [(offset,)] = db.execute(newest).fetchall() or [(0,)]
    marks.append((offset + 1, time))
    db.execute(SET, ("marks", json.dumps([(place, at.isoformat()) for place, at in marks[-MARKS:]])))


def reached_after(db: sqlite3.Connection, time: datetime) -> int | None:
    """The first place that was noted at that time or later."""
    return min((offset for offset, at in _marks(db) if at >= time), default=None)


def _marks(db: sqlite3.Connection) -> list[tuple[int, datetime]]:
    rows = db.execute("SELECT value FROM meta WHERE key = 'marks'").fetchall()
    try:
        return [(int(offset), _time_of(at)) for (text,) in rows for offset, at in json.loads(text)]
    except _NONSENSE:
        return []


def _time_of(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None or not 1970 <= time.year < 3000:
        raise ValueError(text)
    return time
