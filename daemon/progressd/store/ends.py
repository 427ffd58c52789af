"""Queries by the age of jobs; rows that cannot be read are passed over."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice

from progressd.core.job import Job
from progressd.store.rows import JOB, Told, job_of, whole


def before(db: sqlite3.Connection, time: datetime, most: int, told: Told) -> list[Job]:
    """Return the first `most` jobs that were created and ended before `time`, by the time of their ends."""
    query = f"SELECT {JOB} FROM jobs WHERE completed_at < ? ORDER BY completed_at"
    with closing(db.execute(query, (_second(time),))) as rows:
        # A clock that was set back in the meantime gives a job an end before its start.
        return list(islice((job for job in whole(job_of, rows, told) if job.created_at < time), most))


def newest_time(db: sqlite3.Connection, below: int, told: Told) -> datetime | None:
    """Return when the newest job with an offset below was created."""
    query = f"SELECT {JOB} FROM jobs WHERE created_offset < ? ORDER BY created_offset DESC"
    with closing(db.execute(query, (below,))) as rows:
        return next((job.created_at for job in whole(job_of, rows, told)), None)


def _second(time: datetime) -> str:
    """To the second: as text, a time with a fraction comes before the one without, and both after this."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
