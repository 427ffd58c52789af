"""Lists of jobs: all jobs, jobs of a kind, or jobs with a label; by status, newest first, with their total number.

The cost of a page depends neither on the number of jobs nor on its position in the list. The offsets of messages are
divided into blocks, and the store counts the jobs of each block. The counts tell in which block a page begins. From
there, an index is read in order. Only a label in combination with a second label or a kind needs a search among all
jobs with the first label. Triggers maintain labels and counts.
"""

import contextlib
import sqlite3
from typing import Any, Final, NamedTuple

from progressd.core.messages import JobStatus
from progressd.store.base import Filter
from progressd.store.rows import AMONG, JOB, in_json

BLOCK_BITS: Final = 16  # 65,536 offsets; a job has at least four, so the jobs of a block are skipped in 2 ms
PAGE_BYTES: Final = 4 * 1024 * 1024  # bytes of a page, which is in memory several times; a typical job has 0.5 KiB
NEWEST: Final = 2**63 - 1  # above every offset


class _List(NamedTuple):
    """A list: its name in the table of counts, and the query for its jobs of one status."""

    name: str
    value: str
    rows: str
    values: tuple[str, ...] = ()


ALL: Final = _List("all", "", "jobs WHERE status = ?")


def page(db: sqlite3.Connection, which: Filter, limit: int, offset: int, page_bytes: int) -> tuple[list[Any], int]:
    """Return a page of rows with the bodies of the jobs, and the total number of jobs. Call this in a transaction.

    A page that would exceed `page_bytes` contains fewer jobs, but at least one.
    """
    statuses = list(JobStatus if which.statuses is None else which.statuses)
    if not statuses:
        return [], 0
    wanted = _wanted(which)
    if len(which.labels) + (which.kind is not None) > 1:
        select, values = _select(wanted, statuses, NEWEST)
        [total] = db.execute(f"SELECT count(*) FROM ({select})", values).fetchone()
    else:
        total, below, offset = _beginning(db, wanted, statuses, offset)
        select, values = _select(wanted, statuses, below)
    offsets = db.execute(f"{select} ORDER BY created_offset DESC LIMIT ? OFFSET ?", (*values, limit, offset))
    bodies = db.execute(
        f"SELECT {JOB} FROM jobs WHERE created_offset {AMONG} ORDER BY created_offset DESC",
        (in_json(found for (found,) in offsets),),
    )
    rows, size = list[Any](), 0
    with contextlib.closing(bodies):
        for row in bodies:
            size += len(row[-1])
            if rows and size > page_bytes:
                break
            rows.append(row)
    return rows, total


def counts(db: sqlite3.Connection) -> dict[JobStatus, int]:
    """Return the number of jobs by status."""
    rows = db.execute("SELECT status, sum(jobs) FROM counts WHERE list = ? AND value = ? GROUP BY status", ALL[:2])
    return dict.fromkeys(JobStatus, 0) | {JobStatus(status): jobs for status, jobs in rows}


def _beginning(db: sqlite3.Connection, wanted: _List, statuses: list[JobStatus], skip: int) -> tuple[int, int, int]:
    """Return the number of jobs, the offset below which the page begins, and the number of jobs to skip there."""
    marks = ",".join("?" * len(statuses))
    blocks = db.execute(
        f"SELECT block, sum(jobs) FROM counts WHERE list = ? AND value = ? AND status IN ({marks})"
        " GROUP BY block ORDER BY block DESC",
        (wanted.name, wanted.value, *statuses),
    ).fetchall()
    below = NEWEST
    for block, jobs in blocks:
        if skip < jobs:
            break
        skip -= jobs
        below = block << BLOCK_BITS
    return sum(jobs for _, jobs in blocks), below, skip


def _select(wanted: _List, statuses: list[JobStatus], below: int) -> tuple[str, list[object]]:
    """Return a query for the offsets of a list. Each status is in order, so that SQLite merges without sorting."""
    one = f"SELECT created_offset FROM {wanted.rows} AND created_offset < ?"
    values = [value for status in statuses for value in (*wanted.values, status, below)]
    return " UNION ALL ".join([one] * len(statuses)), values


def _wanted(which: Filter) -> _List:
    if not which.labels:
        kind = which.kind
        return ALL if kind is None else _List("kind", kind, "jobs WHERE kind = ? AND status = ?", (kind,))
    (key, value), *others = which.labels
    rows, values = "labels WHERE key = ? AND value = ? AND status = ?", [key, value]
    for label in others:
        of_label = (
            "EXISTS (SELECT 1 FROM labels AS other WHERE other.key = ? AND other.value = ?"
            " AND other.status = labels.status AND other.created_offset = labels.created_offset)"
        )
        rows, values = rows.replace("WHERE", f"WHERE {of_label} AND", 1), [*label, *values]
    if which.kind is not None:
        of_kind = (
            "EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_by_kind WHERE jobs.kind = ?"
            " AND jobs.status = labels.status AND jobs.created_offset = labels.created_offset)"
        )
        rows, values = rows.replace("WHERE", f"WHERE {of_kind} AND", 1), [which.kind, *values]
    return _List(f"label:{key}", value, rows, tuple(values))
