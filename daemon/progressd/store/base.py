"""The store protocol: durable jobs, batches and changes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from prometheus_client import Histogram

from progressd.core.batch import BatchStatus, JobBatch
from progressd.core.errors import CorruptRecord, StoreFailed
from progressd.core.eta import KeyedRun
from progressd.core.job import Job
from progressd.core.messages import JobDeleted, JobStatus, StateChange


class Change(NamedTuple):
    """A state change with its offset in the stream."""

    offset: int
    message: StateChange


class Deletion(NamedTuple):
    """The deletion of a job by a client, with its offset in the stream."""

    offset: int
    message: JobDeleted


class Filter(NamedTuple):
    """The jobs to list. A field that is None selects all jobs."""

    statuses: Collection[JobStatus] | None = None
    kind: str | None = None
    labels: Collection[tuple[str, str]] = ()  # a job must have all of these labels
    words: Sequence[str] = ()  # the text of a job must contain all of these
    attention: bool = False  # only failed jobs, and those that are `troubled`
    troubled: Sequence[int] = ()  # the offsets of unfinished jobs that need attention; the store does not know them


EVERY_JOB: Final = Filter()


class Sort(StrEnum):
    """The order of a list."""

    NEWEST = "-created"
    OLDEST = "created"
    UPDATED = "-updated"
    FINISHED = "-finished"
    NAME = "name"


class Position(NamedTuple):
    """The position of a job in a list: the offset by which the list is sorted, and the name if it is sorted by name."""

    place: int
    name: str = ""


class Paging(NamedTuple):
    """A page of a list. It begins after `offset` jobs, or after the position `after`.

    `counted`: the statuses whose numbers are wanted, too. `limited`: whether a search stops after some time.
    `unfinished`: the offsets of the newest and the first message of each unfinished job, for the order by update.
    """

    limit: int
    offset: int = 0
    sort: Sort = Sort.NEWEST
    after: Position | None = None
    counted: Collection[JobStatus] = ()
    limited: bool = False
    unfinished: Sequence[tuple[int, int]] = ()


class Numbers(NamedTuple):
    """Numbers of jobs by status, and those of `troubled` jobs. `exact`: False if they are lower bounds."""

    by_status: Mapping[JobStatus, int]
    troubled: Mapping[JobStatus, int]
    exact: bool

    def total(self, statuses: Collection[JobStatus] | None, *, attention: bool = False) -> int:
        """Return the number of jobs with one of the statuses, or of those among them that need attention."""
        wanted = JobStatus if statuses is None else statuses
        if attention:
            failed = self.by_status.get(JobStatus.FAILED, 0) if JobStatus.FAILED in wanted else 0
            return failed + sum(self.troubled.get(status, 0) for status in wanted)
        return sum(self.by_status.get(status, 0) for status in wanted)


class Page(NamedTuple):
    """A page of jobs, the numbers of jobs on all pages, and the position after which the next page begins, if any."""

    jobs: list[Job]
    numbers: Numbers
    next: Position | None


class Store(Protocol):
    """Durable jobs and state changes. Every method may raise StoreFailed; then nothing has changed.

    After a disk error in the middle of a commit, the reopened store contains either the whole commit or none of it.
    """

    @property
    def id(self) -> str:
        """Return the id of this store in cursors. Offsets of other stores are invalid here."""

    @property
    def first_offset(self) -> int:
        """Return an offset above all offsets assigned before the store was opened, even by a crashed daemon."""

    @property
    def damage(self) -> StoreFailed | None:
        """Return the error if the file is known to be damaged. A damaged store accepts no changes."""

    @property
    def unreadable(self) -> CorruptRecord | None:
        """Return the error of the last unreadable job, batch or change, if any. Other rows are not affected."""

    async def run(self) -> None:
        """Maintain the store until cancelled."""

    async def reserve(self, offset: int) -> None:
        """Guarantee durably that no later daemon assigns an offset below `offset`."""

    async def commit(
        self,
        jobs: Iterable[Job],
        changes: Sequence[Change],
        batches: Iterable[JobBatch] = (),
        runs: Sequence[KeyedRun] = (),
    ) -> None:
        """Store jobs, changes, batches and runs atomically."""

    async def runs(self) -> list[KeyedRun]:
        """Return the newest readable runs, oldest first."""

    async def jobs(self, ids: Collection[str]) -> Mapping[str, Job]:
        """Return the jobs that exist. Raises CorruptRecord for an unreadable job."""

    async def readable_jobs(self, ids: Collection[str]) -> Mapping[str, Job]:
        """Return the jobs that exist and can be read."""

    async def known(self, ids: Collection[str]) -> Collection[str]:
        """Return the ids of the jobs that exist, readable or not."""

    async def batches(self, ids: Collection[str]) -> Mapping[str, JobBatch]:
        """Return the batches that exist."""

    async def unfinished_batches(self) -> list[JobBatch]:
        """Return every unfinished batch, oldest first."""

    async def jobs_of_batch(self, batch_id: str) -> list[Job]:
        """Return the jobs of a batch, in the order of their submission."""

    async def unfinished(self) -> list[Job]:
        """Return every unfinished job, oldest first."""

    async def list_jobs(self, which: Filter, limit: int, offset: int) -> tuple[list[Job], int]:
        """Return a page of readable jobs, newest first, and the total number of jobs.

        A page of large jobs may contain fewer than `limit` jobs, but at least one.
        """

    async def page(self, which: Filter, paging: Paging) -> Page:
        """Return a page of readable jobs, which may contain fewer than `limit` jobs.

        Raises InvalidInput if there are too many jobs to sort them by name.
        """

    async def counts(self, which: Filter = EVERY_JOB) -> Mapping[JobStatus, int]:
        """Return the number of jobs by status, including zeros."""

    async def batch_counts(self) -> Mapping[BatchStatus, int]:
        """Return the number of batches by status, without zeros."""

    async def changes(self, after: int, upto: int, limit: int, job_id: str | None = None) -> list[Change]:
        """Return the first `limit` changes with after < offset ≤ upto, of one job or of all, oldest first.

        With a `job_id`, an unreadable change raises CorruptRecord; otherwise it is skipped.
        """

    async def changes_of_unfinished(self, upto: int) -> list[Change]:
        """Return all changes with offset ≤ upto of the jobs that were unfinished at `upto`, oldest first."""

    async def moved(self, after: int, upto: int, limit: int) -> list[Job]:
        """Return the first `limit` jobs whose newest stored progress has after < offset ≤ upto, oldest progress first.

        Unreadable jobs are skipped.
        """

    @property
    def oldest_cursor(self) -> int:
        """Return the smallest offset from which clients can resume. Changes after a smaller offset may be deleted."""

    async def last_seen(self) -> datetime | None:
        """Return the creation time of the newest job from before the store was opened; None if there is none."""

    @property
    def delete_durations(self) -> Histogram:
        """Return a histogram of the seconds for which deletions have blocked other writes."""

    async def deletions(self, after: int, upto: int, limit: int) -> list[Deletion]:
        """Return the first `limit` deletions with after < offset ≤ upto, oldest first."""

    async def delete(self, ids: Collection[str], deletion: Deletion | None = None) -> list[str]:
        """Delete the finished jobs among these, as `delete_finished` does, and return their ids.

        A `deletion` is stored for watchers that resume, so every cursor stays valid.
        """

    async def delete_finished(self, before: datetime, limit: int) -> list[str]:
        """Delete at most `limit` jobs that finished before a time, and their changes. Return their ids.

        Jobs that finished first are deleted first. A call deletes as many jobs as a few milliseconds allow, but at
        least one, so other writes do not wait for long. A batch is deleted with its last job. Unreadable jobs are kept.
        """
