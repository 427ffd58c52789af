"""Lists of jobs: all jobs, jobs of a kind, or jobs with a label; by status, newest first, with their total number.

The cost of a page depends neither on the number of jobs nor on its position in the list. The offsets of messages are
divided into blocks, and the store counts the jobs of each block. The counts tell in which block a page begins. From
there, an index is read in order. Only a label in combination with a second label or a kind needs a search among all
jobs with the first label. Triggers maintain labels and counts.
"""

import contextlib
import sqlite3
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from progressd.core.messages import JobStatus
from progressd.store.base import Filter, Paging, Sort
from progressd.store.rows import AMONG, JOB, in_json

BLOCK_BITS: Final = 16  # 65,536 offsets; a job has at least four, so the jobs of a block are skipped in 2 ms
PAGE_BYTES: Final = 4 * 1024 * 1024  # bytes of a page, which is in memory several times; a typical job has 0.5 KiB
NEWEST: Final = 2**63 - 1  # above every offset
OLDEST: Final = -1  # below every offset


class _List(NamedTuple):
    """A list: its name in the table of counts, and the query for its jobs of one status.

    `counted`: whether the jobs are counted there.
    """

    name: str
    value: str
    rows: str
    values: tuple[str, ...] = ()
    counted: bool = True


ALL: Final = _List("all", "", "jobs WHERE status = ?")


def page(db: sqlite3.Connection, which: Filter, paging: Paging, page_bytes: int) -> tuple[list[Any], int, int | None]:
    """Return a page of rows with the bodies of the jobs, the total number of jobs, and the position of the next page.

    A page that would exceed `page_bytes` contains fewer jobs, but at least one. Call this in a transaction.
    """
    statuses = list(JobStatus if which.statuses is None else which.statuses)
    if not statuses:
        return [], 0, None
    wanted = _wanted(which)
    up = paging.sort is Sort.OLDEST
    start, skip = paging.after, paging.offset
    if wanted.counted:
        blocks = _blocks(db, wanted, statuses)
        total = sum(jobs for _, jobs in blocks)
        if start is None:
            start, skip = _beginning(blocks if up else blocks[::-1], skip, up=up)
    else:
        select, values = _select(wanted, statuses, None, up=up)
        [total] = db.execute(f"SELECT count(*) FROM ({select})", values).fetchone()
    select, values = _select(wanted, statuses, start, up=up)
    order = f"ORDER BY created_offset {'ASC' if up else 'DESC'}"
    found = db.execute(f"{select} {order} LIMIT ? OFFSET ?", (*values, paging.limit + 1, skip))
    offsets = [offset for (offset,) in found]
    bodies = db.execute(
        f"SELECT {JOB} FROM jobs WHERE created_offset {AMONG} {order}", (in_json(offsets[: paging.limit]),)
    )
    rows, size = list[Any](), 0
    with contextlib.closing(bodies):
        for row in bodies:
            size += len(row[-1])
            if rows and size > page_bytes:
                break
            rows.append(row)
    return rows, total, rows[-1][0] if rows and len(rows) < len(offsets) else None


def counts(db: sqlite3.Connection, which: Filter) -> dict[JobStatus, int]:
    """Return the number of jobs by status. Call this in a transaction."""
    wanted = _wanted(which)
    if wanted.counted:
        query = "SELECT status, sum(jobs) FROM counts WHERE list = ? AND value = ? GROUP BY status"
        found = dict(db.execute(query, (wanted.name, wanted.value)))
    else:
        found = {}
        for status in JobStatus:
            select, values = _select(wanted, [status], None, up=True)
            [found[status]] = db.execute(f"SELECT count(*) FROM ({select})", values).fetchone()
    return {status: found.get(status, 0) for status in (JobStatus if which.statuses is None else which.statuses)}


def _blocks(db: sqlite3.Connection, wanted: _List, statuses: list[JobStatus]) -> list[tuple[int, int]]:
    """Return the blocks of a list, in order, with the number of its jobs in each."""
    marks = ",".join("?" * len(statuses))
    return db.execute(
        f"SELECT block, sum(jobs) FROM counts WHERE list = ? AND value = ? AND status IN ({marks})"
        " GROUP BY block ORDER BY block",
        (wanted.name, wanted.value, *statuses),
    ).fetchall()


def _beginning(blocks: Iterable[tuple[int, int]], skip: int, *, up: bool) -> tuple[int | None, int]:
    """Return the position after which a page begins, and the number of jobs to skip there."""
    start = None
    for block, jobs in blocks:
        if skip < jobs:
            break
        skip -= jobs
        start = ((block + 1) << BLOCK_BITS) - 1 if up else block << BLOCK_BITS
    return start, skip


def _select(wanted: _List, statuses: list[JobStatus], after: int | None, *, up: bool) -> tuple[str, list[object]]:
    """Return a query for the offsets of a list. Each status is in order, so that SQLite merges without sorting."""
    one = f"SELECT created_offset FROM {wanted.rows} AND created_offset {'>' if up else '<'} ?"
    if after is None:
        after = OLDEST if up else NEWEST
    values = [value for status in statuses for value in (*wanted.values, status, after)]
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
    counted = not others and which.kind is None
    return _List(f"label:{key}", value, rows, tuple(values), counted)
