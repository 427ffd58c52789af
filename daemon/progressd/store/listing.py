"""Lists of jobs: their pages in several orders, and their numbers.

Most lists have all jobs, the jobs of a kind or the jobs with a label. The cost of a page of such a list depends neither
on the number of jobs nor on its position. The offsets of messages are divided into blocks, and the store counts the
jobs of each block. The counts tell in which block a page begins. From there, an index is read in order. Triggers
maintain labels and counts.

Any other list is searched: with words, or with a label in combination with a second label or a kind. A search reads one
range of offsets after the other, and stops after some time. The page may then have fewer jobs, and the numbers are
lower bounds.
"""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeAlias

from progressd.core.errors import InvalidInput
from progressd.core.messages import JobStatus
from progressd.store.base import Filter, Numbers, Paging, Position, Sort
from progressd.store.rows import AMONG, JOB, in_json
from progressd.store.search import Lookup, rarest, words_in_sql

BLOCK_BITS: Final = 16  # 65,536 offsets; a job has at least four, so the jobs of a block are skipped in 2 ms
PAGE_BYTES: Final = 4 * 1024 * 1024  # bytes of a page, which is in memory several times; a typical job has 0.5 KiB
NEWEST: Final = 2**63 - 1  # above every offset
SEARCH_SECONDS: Final = 0.008  # duration of the search for a page, and of the search for the numbers
RANGE: Final = 2**16  # offsets that are searched first
RANGE_SECONDS: Final = 0.003  # target duration of the search of one range
MAX_GROWTH: Final = 16.0  # factor between the sizes of two ranges
UPDATED_BATCH: Final = 1000  # unfinished jobs that are compared with a filter at a time
SMALL: Final = 5000  # jobs that are compared or sorted in some milliseconds
NAME: Final = "substr(text, 1, instr(text, char(10)) - 1) COLLATE NOCASE"  # the first line of the text of a job


class Rows(NamedTuple):
    """The rows of a page with the bodies of its jobs, and the position after which the next page begins, if any."""

    rows: list[Any]
    next: Position | None


class _SQL(NamedTuple):
    """A part of a query, with its values."""

    text: str
    values: tuple[object, ...] = ()


class _List(NamedTuple):
    """A list that has an index: its name in the table of counts, its table, and the condition for its rows."""

    name: str
    value: str
    table: str
    condition: _SQL


_ALL: Final = _List("all", "", "jobs AS {row} INDEXED BY jobs_by_status", _SQL("TRUE"))


_Parts: TypeAlias = Callable[[int, int], list[_SQL]]
"""A function that returns the queries for the jobs of a range, between two numbers."""


class _Found(NamedTuple):
    """The jobs that a search has found, in order: their places in that order, and their offsets.

    `edge`: the place up to which it has searched; None if it has searched everything.
    """

    places: list[int]
    offsets: list[int]
    edge: int | None


class _Ranges:
    """Divide the numbers from `low` to `high` into ranges, each searched in about RANGE_SECONDS, for some time.

    `size`: the size of the first range.
    """

    def __init__(self, low: int, high: int, seconds: float, size: int = RANGE, *, up: bool) -> None:
        self._low = low
        self._high = high
        self._seconds = seconds
        self._size = size
        self._up = up
        self.edge: int | None = None  # the last number of the last range; None if everything has been searched

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the numbers below and above each range, and stop when the time is over."""
        low, high, span = self._low, self._high, float(self._size)
        deadline = perf_counter() + self._seconds
        while low <= high:
            began = perf_counter()
            size = min(int(span), high - low + 1)
            below, above = (low - 1, low + size) if self._up else (high - size, high + 1)
            self.edge = above - 1 if self._up else below + 1
            yield below, above
            low, high = (above, high) if self._up else (low, below)
            now = perf_counter()
            if low <= high and now > deadline:
                return
            span *= min(MAX_GROWTH, max(1 / MAX_GROWTH, RANGE_SECONDS / (now - began)))
        self.edge = None


class Listing:
    """The jobs that a filter selects. Use it in a transaction. `seconds`: how long a search may take."""

    def __init__(self, db: sqlite3.Connection, which: Filter, seconds: float = SEARCH_SECONDS) -> None:
        self._db = db
        self._which = which
        self._seconds = seconds
        self._statuses = list(JobStatus if which.statuses is None else which.statuses)
        lists = _lists(which)
        if len(lists) > 1:
            lists.sort(key=lambda one: sum(jobs for _, jobs in self._blocks(one)))
        self._list = lists[0]
        self._others = lists[1:]
        self._trigrams, self._at_once = Lookup()
        self._words: list[_SQL] = []
        if which.words:
            condition, values, trigrams = words_in_sql(which.words, "listed.created_offset")
            self._trigrams, self._at_once = rarest(db, trigrams)
            self._words.append(_SQL(condition, values))
        self._searched = bool(self._others or self._words)
        self._all: list[tuple[int, JobStatus]] | None = None  # the offsets and statuses of all jobs, if few

    def numbers(self, statuses: Iterable[JobStatus]) -> Numbers:
        """Return the numbers of jobs with the kind, labels and words of the filter, by status."""
        statuses = list(statuses)
        unfinished = [status for status in statuses if not status.finished]
        parts = [self._given(self._which.troubled, unfinished)] if self._which.troubled else []
        troubled = self._count(parts)
        if not self._searched:
            return Numbers(self._sizes(statuses), troubled, True)
        by_status = dict.fromkeys(statuses, 0)
        small = sum(self._sizes(statuses).values()) <= SMALL
        if small or self._at_once:
            listed = [self._listed(status, 0, NEWEST) for status in statuses]
            self._all = self._few_of(listed if small else self._parts(statuses, 0, NEWEST))
            if self._all is not None:
                return Numbers(by_status | Counter(status for _, status in self._all), troubled, True)
        ranges = self._all_ranges(self._seconds, up=False)
        for below, above in ranges:
            for status, jobs in self._count(self._parts(statuses, below, above)).items():
                by_status[status] += jobs
        exact = ranges.edge is None
        if not exact:
            sizes = self._sizes(statuses)
            for status in statuses:
                if sizes[status] <= SMALL:
                    by_status[status] = self._count([self._listed(status, 0, NEWEST)]).get(status, 0)
        return Numbers(by_status, troubled, exact)

    def page(self, paging: Paging, page_bytes: int) -> Rows:
        """Return a page. A page that would exceed `page_bytes` contains fewer jobs, but at least one.

        Raises InvalidInput if there are too many jobs to sort them by name.
        """
        if not self._statuses:
            return Rows([], None)
        found = self._found(paging)
        rows = self._rows(found.offsets[: paging.limit], page_bytes)
        if rows and len(rows) < len(found.offsets):
            last = len(rows) - 1
            return Rows(rows, self._position(paging.sort, found.places[last], found.offsets[last]))
        return Rows(rows, None if found.edge is None else Position(found.edge))

    def _found(self, paging: Paging) -> _Found:
        """Return the jobs of a page, and one more if there is one."""
        up = paging.sort is Sort.OLDEST
        after = None if paging.after is None else paging.after.place
        if paging.sort in (Sort.NEWEST, Sort.OLDEST) and not self._searched and not self._which.attention:
            skip = paging.offset
            if after is None:
                after, skip = self._beginning(skip, up=up)
            bounds = (0 if after is None else after, None) if up else (None, NEWEST if after is None else after)
            parts = [self._listed(status, *bounds) for status in self._statuses]
            return _Found(*self._query(parts, paging.limit + 1, skip, up=up), None)
        limit = paging.offset + paging.limit + 1
        if paging.sort is Sort.NAME:
            found = self._by_name(paging.after, limit)
        elif paging.sort is Sort.FINISHED:
            found = self._by_finish(after, limit)
        elif paging.sort is Sort.UPDATED:
            found = self._by_update(paging.unfinished, after, limit)
        else:
            ranges = self._all_ranges(self._seconds, up=up, after=after)
            found = self._search(ranges, self._wanted, limit, up=up)
        return _Found(found.places[paging.offset :], found.offsets[paging.offset :], found.edge)

    def _position(self, sort: Sort, place: int, offset: int) -> Position:
        if sort is not Sort.NAME:
            return Position(place)
        [name] = self._db.execute(f"SELECT {NAME} FROM texts WHERE created_offset = ?", (offset,)).fetchone()
        return Position(place, name)

    def _by_finish(self, after: int | None, limit: int) -> _Found:
        """Return finished jobs, the last finished first."""
        statuses = [status for status in self._statuses if status.finished]
        if self._which.attention:
            statuses = [status for status in statuses if status is JobStatus.FAILED]
        size = sum(self._sizes(statuses).values())
        if size <= SMALL or self._all is not None:
            few = self._few(lambda below, above: self._parts(statuses, below, above), size, self._seconds)
            if few is not None:
                query = f"SELECT offset, created_offset FROM jobs WHERE created_offset {AMONG} AND offset < ?"
                order = f"{query} ORDER BY offset DESC LIMIT ?"
                rows = self._db.execute(order, (in_json(few), NEWEST if after is None else after, limit)).fetchall()
                return _Found([place for place, _ in rows], [offset for _, offset in rows], None)
        finished = "jobs WHERE completed_at IS NOT NULL AND status = ?1"
        ends = [self._db.execute(_ends("offset", finished), (status,)).fetchone() for status in statuses]
        low = min((low for low, _ in ends if low is not None), default=1)
        high = max((high for _, high in ends if high is not None), default=0)
        ranges = _Ranges(low, high if after is None else min(high, after - 1), self._seconds, up=False)
        return self._search(
            ranges, lambda below, above: [self._finished(one, below, above) for one in statuses], limit, up=False
        )

    def _by_update(self, unfinished: Sequence[tuple[int, int]], after: int | None, limit: int) -> _Found:
        """Return jobs, those with the newest message first."""
        statuses = [status for status in self._statuses if not status.finished]
        troubled = set(self._which.troubled)
        unfinished = [one for one in unfinished if not self._which.attention or one[1] in troubled]
        below = NEWEST if after is None else after
        newest = sorted((one for one in unfinished if one[0] < below), reverse=True)
        places = dict[int, int]()  # by the offset of the first message
        for first in range(0, len(newest), UPDATED_BATCH):
            some = newest[first : first + UPDATED_BATCH]
            moving = set(self._query([self._given([created for _, created in some], statuses)], -1, up=True)[1])
            places |= {created: place for place, created in some if created in moving}
            if len(places) >= limit:
                break
        found = self._by_finish(after, limit)
        edge = 0 if found.edge is None else found.edge
        places |= zip(found.offsets, found.places, strict=True)  # a job may have finished since
        both = sorted(((place, offset) for offset, place in places.items() if edge <= place < below), reverse=True)
        both = both[:limit]
        return _Found([place for place, _ in both], [offset for _, offset in both], found.edge)

    def _by_name(self, after: Position | None, limit: int) -> _Found:
        few = self._few(self._wanted, sum(self._sizes(self._statuses).values()), float("inf"))
        if few is None:
            raise InvalidInput(f"more than {SMALL:,} jobs cannot be sorted by name: ask for fewer with other filters")
        query = f"SELECT created_offset FROM texts WHERE created_offset {AMONG}"
        values: list[object] = [in_json(few)]
        if after is not None:
            query += f" AND ({NAME}, created_offset) > (? COLLATE NOCASE, ?)"
            values += [after.name, after.place]
        rows = self._db.execute(f"{query} ORDER BY {NAME}, created_offset LIMIT ?", (*values, limit)).fetchall()
        offsets = [offset for (offset,) in rows]
        return _Found(offsets, offsets, None)

    def _few(self, parts: _Parts, size: int, seconds: float) -> list[int] | None:
        """Return the offsets of all jobs, in any order; None if there are many, or if the search takes too long.

        `size`: the number of jobs among which the search looks for words.
        """
        if size > SMALL and not self._words:
            return None
        ranges = self._all_ranges(seconds if size > SMALL else float("inf"), up=False)
        found = self._search(ranges, parts, SMALL + 1, up=False)
        return found.offsets if found.edge is None and len(found.offsets) <= SMALL else None

    def _search(self, ranges: _Ranges, parts: _Parts, limit: int, *, up: bool) -> _Found:
        """Search one range after the other, until there are enough jobs or the time is over."""
        places, offsets = list[int](), list[int]()
        for below, above in ranges:
            more = self._query(parts(below, above), limit - len(places), up=up)
            places += more[0]
            offsets += more[1]
            if len(places) == limit:
                return _Found(places, offsets, None)
        return _Found(places, offsets, ranges.edge)

    def _all_ranges(self, seconds: float, *, up: bool, after: int | None = None) -> _Ranges:
        low, high = self._db.execute(_ends("created_offset", "jobs")).fetchone()
        low, high = (1, 0) if low is None else (low, high)
        if after is not None:
            low, high = (max(low, after + 1), high) if up else (low, min(high, after - 1))
        return _Ranges(low, high, seconds, high - low + 1 if self._at_once else RANGE, up=up)

    def _wanted(self, below: int, above: int) -> list[_SQL]:
        """Return the queries for the jobs of a range that the filter selects."""
        if not self._which.attention:
            return self._parts(self._statuses, below, above)
        unfinished = [status for status in self._statuses if not status.finished]
        troubled = self._given(self._which.troubled, unfinished, below, above)
        failed = [status for status in self._statuses if status is JobStatus.FAILED]
        return [troubled, *self._parts(failed, below, above)]

    def _parts(self, statuses: Sequence[JobStatus], below: int, above: int) -> list[_SQL]:
        """Return the queries for the jobs of a range with one of these statuses."""
        if self._all is not None:
            known = [offset for offset, status in self._all if status in statuses and below < offset < above]
            return [_SQL("SELECT value AS place, value AS job, NULL AS status FROM json_each(?)", (in_json(known),))]
        finished = [status for status in statuses if status.finished]
        if not (self._trigrams and finished):
            return [self._listed(status, below, above) for status in statuses]
        match = _SQL("found.search MATCH ?", (self._trigrams,))
        return [
            *(self._listed(status, below, above) for status in statuses if not status.finished),
            self._joined("search AS found", "found.rowid", match, finished, below, above),
            self._joined("unindexed AS found", "found.created_offset", _SQL("TRUE"), finished, below, above),
        ]

    def _listed(self, status: JobStatus, below: int | None, above: int | None) -> _SQL:
        """Return the query for the jobs of the list in a range, from its index."""
        conditions = [self._list.condition, _SQL("listed.status = ?", (status,))]
        conditions += _bounds("listed.created_offset", below, above)
        table = self._list.table.format(row="listed")
        return _select(
            "listed.created_offset, listed.created_offset, listed.status", table, [*conditions, *self._rest()]
        )

    def _joined(
        self, table: str, place: str, condition: _SQL, statuses: Sequence[JobStatus], below: int, above: int
    ) -> _SQL:
        """Return the query for the jobs in a range of another table, in its order, that are also in the list."""
        status = _SQL(f"listed.status IN ({','.join('?' * len(statuses))})", tuple(statuses))
        same = _SQL(f"listed.created_offset = {place}")
        conditions = [condition, *_bounds(place, below, above), self._list.condition, status, same, *self._rest()]
        both = f"{table} CROSS JOIN {self._list.table.format(row='listed')}"
        return _select(f"{place}, {place}, listed.status", both, conditions)

    def _given(
        self, offsets: Sequence[int], statuses: Sequence[JobStatus], below: int = 0, above: int = NEWEST
    ) -> _SQL:
        """Return the query for those jobs of a range that have one of these offsets."""
        table = "(SELECT value FROM json_each(?)) AS found"
        part = self._joined(table, "found.value", _SQL("TRUE"), statuses, below, above)
        return part._replace(values=(in_json(offsets), *part.values))

    def _finished(self, status: JobStatus, below: int, above: int) -> _SQL:
        """Return the query for the jobs whose last messages are in a range."""
        conditions = [_SQL("listed.completed_at IS NOT NULL AND listed.status = ?", (status,))]
        conditions += _bounds("listed.offset", below, above)
        lists = [one for one in (self._list, *self._others) if one is not _ALL]
        table = "jobs AS listed INDEXED BY jobs_by_finish"
        return _select(
            "listed.offset, listed.created_offset, listed.status",
            table,
            [*conditions, *map(_also, lists), *self._words],
        )

    def _rest(self) -> list[_SQL]:
        return [*map(_also, self._others), *self._words]

    def _query(self, parts: Sequence[_SQL], limit: int, skip: int = 0, *, up: bool) -> tuple[list[int], list[int]]:
        """Return the places and offsets of jobs, in order. Each query is in order, so that SQLite merges them."""
        if not parts:
            return [], []
        union = " UNION ALL ".join(part.text for part in parts)
        values = [value for part in parts for value in part.values]
        # One row: for each further row, this thread would have to wait for the event loop.
        [(places, offsets)] = self._db.execute(
            "SELECT json_group_array(place), json_group_array(job)"
            f" FROM ({union} ORDER BY 1 {'ASC' if up else 'DESC'} LIMIT ? OFFSET ?)",
            (*values, limit, skip),
        )
        return json.loads(places), json.loads(offsets)

    def _few_of(self, parts: Sequence[_SQL]) -> list[tuple[int, JobStatus]] | None:
        """Return the offsets and statuses of all jobs that the queries select, in any order; None if there are many."""
        if not parts:
            return []
        union = " UNION ALL ".join(part.text for part in parts)
        values = [value for part in parts for value in part.values]
        [(jobs, statuses)] = self._db.execute(
            f"SELECT json_group_array(job), json_group_array(status) FROM ({union} LIMIT ?)", (*values, SMALL + 1)
        )
        found = list(zip(json.loads(jobs), map(JobStatus, json.loads(statuses)), strict=True))
        return found if len(found) <= SMALL else None

    def _count(self, parts: Sequence[_SQL]) -> dict[JobStatus, int]:
        if not parts:
            return {}
        union = " UNION ALL ".join(part.text for part in parts)
        values = [value for part in parts for value in part.values]
        rows = self._db.execute(f"SELECT status, count(*) FROM ({union}) GROUP BY status", values)
        return {JobStatus(status): jobs for status, jobs in rows}

    def _rows(self, offsets: Sequence[int], page_bytes: int) -> list[Any]:
        # In the order of the offsets. ORDER BY would sort, and thus read all bodies.
        bodies = self._db.execute(
            f"SELECT {JOB} FROM (SELECT value AS wanted FROM json_each(?)) CROSS JOIN jobs ON created_offset = wanted",
            (in_json(offsets),),
        )
        rows, size = list[Any](), 0
        with contextlib.closing(bodies):
            for row in bodies:
                size += len(row[-1])
                if rows and size > page_bytes:
                    break
                rows.append(row)
        return rows

    def _sizes(self, statuses: Iterable[JobStatus]) -> dict[JobStatus, int]:
        """Return the number of jobs in the list, by status."""
        query = "SELECT status, sum(jobs) FROM counts WHERE list = ? AND value = ? GROUP BY status"
        found = dict(self._db.execute(query, (self._list.name, self._list.value)))
        return {status: found.get(status, 0) for status in statuses}

    def _blocks(self, which: _List) -> list[tuple[int, int]]:
        """Return the blocks of a list, in order, with the number of its jobs in each."""
        marks = ",".join("?" * len(self._statuses))
        return self._db.execute(
            f"SELECT block, sum(jobs) FROM counts WHERE list = ? AND value = ? AND status IN ({marks})"
            " GROUP BY block ORDER BY block",
            (which.name, which.value, *self._statuses),
        ).fetchall()

    def _beginning(self, skip: int, *, up: bool) -> tuple[int | None, int]:
        """Return the position after which a page begins, and the number of jobs to skip there."""
        after = None
        blocks = self._blocks(self._list)
        for block, jobs in blocks if up else reversed(blocks):
            if skip < jobs:
                break
            skip -= jobs
            after = ((block + 1) << BLOCK_BITS) - 1 if up else block << BLOCK_BITS
        return after, skip


def _lists(which: Filter) -> list[_List]:
    """Return the lists whose common jobs the filter selects."""
    found = [
        _List(f"label:{key}", value, "labels AS {row}", _SQL("listed.key = ? AND listed.value = ?", (key, value)))
        for key, value in which.labels
    ]
    if which.kind is not None:
        by_kind = "jobs AS {row} INDEXED BY jobs_by_kind"
        found.append(_List("kind", which.kind, by_kind, _SQL("listed.kind = ?", (which.kind,))))
    return found or [_ALL]


def _also(one: _List) -> _SQL:
    """Return the condition that a job is in another list, too."""
    condition = one.condition.text.replace("listed.", "other.")
    same = "other.status = listed.status AND other.created_offset = listed.created_offset"
    return _SQL(
        f"EXISTS (SELECT 1 FROM {one.table.format(row='other')} WHERE {condition} AND {same})", one.condition.values
    )


def _ends(column: str, rows: str) -> str:
    """Return the query for the smallest and the largest value of a column that has an index."""
    return f"SELECT (SELECT min({column}) FROM {rows}), (SELECT max({column}) FROM {rows})"


def _bounds(place: str, below: int | None, above: int | None) -> list[_SQL]:
    bounds = [_SQL(f"{place} > ?", (below,))] if below is not None else []
    return bounds + ([_SQL(f"{place} < ?", (above,))] if above is not None else [])


def _select(columns: str, table: str, conditions: Sequence[_SQL]) -> _SQL:
    place, job, status = columns.split(", ")
    return _SQL(
        f"SELECT {place} AS place, {job} AS job, {status} AS status FROM {table}"
        f" WHERE {' AND '.join(one.text for one in conditions)}",
        tuple(value for one in conditions for value in one.values),
    )
