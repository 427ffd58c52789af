"""The jobs of the list: their state, filters, tabs and order. No input and output."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import msgspec
from msgspec import UNSET
from rich.cells import cell_len

from progressd.cli import text
from progressd.cli.language import later, t
from progressd.core.messages import (
    Completed,
    Error,
    JobCreated,
    JobDeleted,
    JobStatus,
    Message,
    Progress,
    ProgressData,
    StatusChange,
    ends_job,
)

NOTHING: Final = ProgressData(0, 0, "", 0)
MAX_FINISHED: Final = 10_000  # finished jobs in memory; the oldest go first
MAX_SEARCHED_ERROR: Final = 1000  # characters of an error that searches find, as in the daemon


class Tab(StrEnum):
    """The parts of the list."""

    RUNNING = later("Running")
    WAITING = later("Waiting")
    ATTENTION = later("Needs a look")
    FINISHED = later("Finished")
    ALL = later("All")


class Row:
    """A job as the list shows it."""

    __slots__ = (
        "_haystack",
        "created",
        "data",
        "ended",
        "error",
        "id",
        "input_filename",
        "kind",
        "labels",
        "moved_at",
        "name",
        "outcome",
        "slow",
        "stalled_since",
        "status",
        "width",
    )

    def __init__(self, job_id: str) -> None:
        self.id = job_id
        self.name = text.short(job_id)
        self.kind = ""
        self.input_filename = ""
        self.labels: Mapping[str, str] = {}
        self.status = JobStatus.PROCESSING
        self.data = NOTHING
        self.created = 0.0  # seconds since 1970
        self.ended = 0.0
        self.stalled_since = 0.0
        self.slow = False  # a running job takes longer than usual; messages do not say so
        self.moved_at = 0.0  # of the monotonic clock, for the remaining time
        self.outcome = ""  # the error, or how long the job took
        self.error = ""
        self.width = cell_len(self.name)
        self._haystack: str | None = None

    @property
    def stalled(self) -> bool:
        """Return whether the producer of a running job is silent."""
        return self.data.stalled and self.status is JobStatus.PROCESSING

    @property
    def needs_look(self) -> bool:
        """Return whether a person should look at the job."""
        status = self.status
        return status is JobStatus.FAILED or (status is JobStatus.PROCESSING and (self.stalled or self.slow))

    def describe(
        self, kind: str, name: str | None, input_filename: str | None, labels: Mapping[str, str], created: datetime
    ) -> None:
        """Set what a job has from its beginning."""
        self.kind = kind
        self.name = text.printable(name or input_filename or kind)
        self.input_filename = input_filename or ""
        self.labels = labels
        self.created = created.timestamp()
        self.width = cell_len(self.name)
        self._haystack = None

    def contains(self, words: Sequence[str]) -> bool:
        """Return whether every word, in lower case, occurs in the job as the daemon searches it (docs/rest.md)."""
        if self._haystack is None:
            error = self.error[:MAX_SEARCHED_ERROR]
            parts = [self.name if self.kind else "", self.input_filename, self.kind, error, *self.labels.values()]
            self._haystack = "\n".join(parts).lower()
        return all(word in self._haystack or self.id.startswith(word) for word in words)

    def end(self, status: JobStatus, ended: float, *, error: str = "", took: str = "") -> None:
        """Set the final status. Without an error or a duration, the known outcome stays."""
        self.slow = False
        self.error = error or (self.error if status is self.status else "")
        self.status = status
        self.outcome = error or took or self.outcome
        self.ended = ended
        self._haystack = None


@dataclass(frozen=True)
class Filter:
    """Which jobs the list shows, besides its tab. Empty fields do not filter."""

    statuses: frozenset[JobStatus] = frozenset()
    kind: str = ""
    host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    search: str = ""

    @cached_property
    def words(self) -> list[str]:
        """Return the words of the search in lower case."""
        return self.search.lower().split()

    def admits(self, row: Row) -> bool:
        """Return whether the list shows a job."""
        return (
            (not self.statuses or row.status in self.statuses)
            and (not self.kind or row.kind == self.kind)
            and (not self.host or row.labels.get("host") == self.host)
            and all(row.labels.get(name) == value for name, value in self.labels.items())
            and (not self.search or row.contains(self.words))
        )


class Selection:
    """Select the messages of the jobs that a filter admits, for output in lines. Messages of no job are admitted."""

    def __init__(self, given: Filter) -> None:
        self._filter = given
        self._rows = Rows(Filter())

    def admits(self, message: Message | None) -> bool:
        """Take a message in order, and return whether to show it."""
        if message is None or (row := self._rows.take(message)) is None:
            return not isinstance(message, JobDeleted)
        if isinstance(message, JobDeleted) or ends_job(message):
            self._rows.forget(row)
        return self._filter.admits(row)


class Rows:
    """All known jobs, and those that the current tab and filter show, in order."""

    def __init__(self, given: Filter, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows = dict[str, Row]()
        self._clock = clock
        self._given = self._filter = given
        self._tab = Tab.ALL
        self._stale = True  # the order, the counts and `longest_name`
        self._shown = list[Row]()
        self._counts = dict.fromkeys(Tab, 0)
        self._longest_name = 0
        self._optional = frozenset[str]()
        self._totals = dict[Tab, int]()
        self._finished = 0  # finished jobs that are loaded
        self._lost_at = 0.0  # of the monotonic clock
        self.lost_since: float | None = None  # when the connection was lost, in seconds since 1970

    @property
    def stale(self) -> bool:
        """Return whether other jobs are shown than before, or in another order."""
        return self._stale

    @property
    def tab(self) -> Tab:
        """Return the current tab."""
        return self._tab

    @tab.setter
    def tab(self, tab: Tab) -> None:
        self._tab, self._stale = tab, True

    @property
    def wanted(self) -> Filter:
        """Return the current filter."""
        return self._filter

    @wanted.setter
    def wanted(self, given: Filter) -> None:
        self._filter, self._stale = given, True

    @property
    def shown(self) -> Sequence[Row]:
        """Return the jobs to show, in order."""
        self._refresh()
        return self._shown

    @property
    def counts(self) -> Mapping[Tab, int]:
        """Return the number of jobs in each tab, with the current filter."""
        self._refresh()
        return self._counts

    def set_totals(self, totals: Mapping[Tab, int]) -> None:
        """Note how many jobs the daemon has for these tabs, including those that are not loaded."""
        self._totals, self._stale = dict(totals), True

    @property
    def unloaded(self) -> bool:
        """Return whether the daemon may have finished jobs for the current tab that are not loaded."""
        if self._finished >= MAX_FINISHED or self._filter != self._given or self._tab in (Tab.RUNNING, Tab.WAITING):
            return False
        return self._tab is not Tab.ATTENTION or self.counts[self._tab] > len(self._shown)

    @property
    def optional_columns(self) -> frozenset[str]:
        """Return the columns that are worth showing in the current tab: rates, and hosts if there are several."""
        self._refresh()
        return self._optional

    @property
    def longest_name(self) -> int:
        """Return the cells of the longest name in the current tab."""
        self._refresh()
        return self._longest_name

    def lost(self) -> None:
        """Stop the clocks: the connection is lost."""
        if self.lost_since is None:
            self.lost_since, self._lost_at = time.time(), self._clock()

    def regained(self) -> None:
        """Let the clocks run again."""
        self.lost_since = None

    def time(self) -> float:
        """Return the time for which the list holds, in seconds since 1970."""
        return time.time() if self.lost_since is None else self.lost_since

    def age(self, row: Row) -> float:
        """Return the age of a job's progress in seconds."""
        return (self._clock() if self.lost_since is None else self._lost_at) - row.moved_at

    def clear(self) -> None:
        """Forget all jobs."""
        self._rows.clear()
        self._stale = True

    def overall(self, rows: Iterable[Row] | None = None) -> tuple[str, int]:
        """Return the progress of the running jobs, or of these, for a terminal's tab: a state and a percentage."""
        running = [
            row
            for row in (filter(self._filter.admits, self._rows.values()) if rows is None else rows)
            if row.status is JobStatus.PROCESSING
        ]
        known = [row.data.percent for row in running if row.data.percent or row.data.total_steps]
        percent = sum(known) // len(known) if known else 0
        if not running:
            return "none", 0
        if self.lost_since is not None or any(row.stalled for row in running):
            return "paused", percent
        return ("normal", percent) if known else ("unknown", 0)

    def forget(self, row: Row) -> None:
        """Remove a job."""
        self._rows.pop(row.id, None)
        self._stale = True

    def take(self, message: Message) -> Row | None:
        """Apply a message, and return the job that it changes."""
        match message:
            case JobCreated(job_id, data):
                row = self._row(job_id)
                row.describe(data.kind, data.name, data.input_filename, data.labels, data.created_at)
                if not row.status.finished or not row.ended:
                    row.status = data.status
            case Progress(job_id, data):
                row = self._row(job_id)
                if not data.stalled:
                    row.stalled_since = 0.0
                elif not row.stalled_since:
                    row.stalled_since = _seconds(message.time)
                if row.stalled != data.stalled:
                    self._stale = True
                if data.rate is not UNSET and "rate" not in self._optional:
                    self._stale = True
                row.data, row.moved_at = data, self._clock()
                return row
            case StatusChange(job_id, data):
                row = self._row(job_id)
                if data.new_status.finished:
                    self._count_end(row, data.new_status)
                    row.end(data.new_status, _seconds(message.time))
                elif not row.ended or _seconds(message.time) > row.ended:  # not an earlier message of a finished job
                    row.status, row.ended = data.new_status, 0.0
            case Completed(job_id, data):
                row = self._row(job_id)
                took = t("in {time}", time=text.seconds(data.elapsed_seconds))
                row.end(JobStatus.COMPLETED, _seconds(message.time), took=took)
            case Error(job_id, data):
                row = self._row(job_id)
                row.end(JobStatus.FAILED, _seconds(message.time), error=text.printable(data.message))
            case JobDeleted(job_id, data):
                self._stale = True
                for tab, total in self._totals.items():
                    self._totals[tab] = total - (tab is Tab.FINISHED or data.status is JobStatus.FAILED)
                return self._rows.pop(job_id, None)
            case _:
                return None
        self._stale = True
        return row

    def take_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Add jobs of the REST API. An unfinished job that is known stays as its messages say."""
        for job in jobs:
            status = JobStatus(job["status"])
            if job["id"] in self._rows and not status.finished:
                continue
            row = self._row(job["id"])
            created = datetime.fromisoformat(job["created_at"])
            row.describe(job["kind"], job.get("name"), job.get("input_filename"), job["labels"], created)
            row.data, row.moved_at = msgspec.convert(job["progress"], ProgressData), self._clock()
            row.status = status
            if status.finished:
                took = t("in {time}", time=text.seconds(job["elapsed_seconds"])) if "elapsed_seconds" in job else ""
                ended = datetime.fromisoformat(job.get("completed_at", job["created_at"]))
                row.end(status, ended.timestamp(), error=text.printable(job.get("error", "")), took=took)
        self._stale = True

    def mark_slow(self, job_ids: Collection[str]) -> None:
        """Note which running jobs take longer than usual."""
        for row in self._rows.values():
            slow = row.id in job_ids and not row.status.finished
            self._stale = self._stale or row.slow is not slow
            row.slow = slow

    def _count_end(self, row: Row, status: JobStatus) -> None:
        if not row.status.finished and self._filter.admits(row):
            for tab, total in self._totals.items():
                self._totals[tab] = total + (tab is Tab.FINISHED or status is JobStatus.FAILED)

    def _row(self, job_id: str) -> Row:
        if (row := self._rows.get(job_id)) is None:
            row = self._rows[job_id] = Row(job_id)
            self._stale = True
        return row

    def _refresh(self) -> None:
        if not self._stale:
            return
        self._stale = False
        self._forget_oldest()
        admits, everything = self._filter.admits, self._filter == Filter()
        admitted = [row for row in self._rows.values() if everything or admits(row)]
        statuses = Counter(row.status for row in admitted)
        counts = {
            Tab.RUNNING: statuses[JobStatus.PROCESSING],
            Tab.WAITING: statuses[JobStatus.QUEUED],
            Tab.ATTENTION: sum(row.needs_look for row in admitted),
            Tab.FINISHED: sum(count for status, count in statuses.items() if status.finished),
        }
        counts[Tab.ALL] = len(admitted)
        self._finished = counts[Tab.FINISHED]
        if not (self._filter.search or self._filter.statuses):
            for tab, total in self._totals.items():
                counts[tab] = max(counts[tab], total)
            counts[Tab.ALL] += counts[Tab.FINISHED] - self._finished
        self._counts = counts
        self._shown = sorted((row for row in admitted if _IN_TAB[self._tab](row)), key=_ORDER[self._tab])
        self._longest_name = max((row.width for row in self._shown), default=0)
        hosts = len({row.labels.get("host", "") for row in self._shown}) > 1
        rates = any(row.data.rate is not UNSET for row in self._shown)
        self._optional = frozenset(["host"] * hosts + ["rate"] * rates)

    def _forget_oldest(self) -> None:
        """Forget the finished jobs that ended first, if there are far too many."""
        if len(self._rows) > 2 * MAX_FINISHED and self._finished > 2 * MAX_FINISHED:
            ended = sorted((row.ended, row.id) for row in self._rows.values() if row.status.finished)
            for _, job_id in ended[: len(ended) - MAX_FINISHED]:
                del self._rows[job_id]


_IN_TAB: Final[Mapping[Tab, Callable[[Row], bool]]] = {
    Tab.RUNNING: lambda row: row.status is JobStatus.PROCESSING,
    Tab.WAITING: lambda row: row.status is JobStatus.QUEUED,
    Tab.ATTENTION: lambda row: row.needs_look,
    Tab.FINISHED: lambda row: row.status.finished,
    Tab.ALL: lambda row: True,
}


def _by_attention(row: Row) -> tuple[float, ...]:
    """Sort jobs that need a look up, then the newest."""
    return (not row.stalled, not row.slow, -(row.ended or row.created))


_GROUPS: Final = {JobStatus.PROCESSING: 0, JobStatus.QUEUED: 1}
_ORDER: Final[Mapping[Tab, Callable[[Row], tuple[float, ...]]]] = {
    Tab.RUNNING: _by_attention,
    Tab.WAITING: lambda row: (-row.created,),
    Tab.ATTENTION: _by_attention,
    Tab.FINISHED: lambda row: (-row.ended,),
    Tab.ALL: lambda row: (_GROUPS.get(row.status, 2), *_by_attention(row)),
}


def _seconds(when: object) -> float:
    """Return the time of a message in seconds since 1970, or now."""
    return time.time() if when is UNSET or not isinstance(when, datetime) else when.timestamp()
