"""The finished jobs of the SQLite file in the order of their ends; those that cannot be read are passed over."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from progressd.core.job import Job
from progressd.store.documents import JOB, Told, job_of, whole

LAST: Final = 2**63 - 1  # an offset above all


def before(db: sqlite3.Connection, time: datetime, most: int, below: int | None, told: Told) -> list[Job]:
    """The first `most` jobs that ended before then, with an offset below, if one is given."""
    query = f"SELECT {JOB} FROM jobs WHERE completed_at < ? AND offset < ? ORDER BY offset"
    with closing(db.execute(query, (_second(time), LAST if below is None else below))) as rows:
        # A job whose end comes before its start has met a clock that jumped.
        return list(islice((job for job in whole(job_of, rows, told) if job.created_at < time), most))


def newest_time(db: sqlite3.Connection, below: int, told: Told) -> datetime | None:
    """The time of the newest end or, if it came later, creation, of those with an offset below."""
    ended = "SELECT {JOB} FROM jobs WHERE completed_at IS NOT NULL AND offset < ? ORDER BY offset DESC"
    created = "SELECT {JOB} FROM jobs WHERE created_offset < ? ORDER BY created_offset DESC"

    def first(query: str) -> list[Job]:
        with closing(db.execute(query.format(JOB=JOB), (below,))) as rows:
            return list(islice(whole(job_of, rows, told), 1))

    times = [(job.offset, job.completed_at) for job in first(ended) if job.completed_at is not None]
    times += [(job.created_offset, job.created_at) for job in first(created)]
    return max(times)[1] if times else None


def _second(time: datetime) -> str:
    """To the second: as text, a time with a fraction comes before the one without, and both after this."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
