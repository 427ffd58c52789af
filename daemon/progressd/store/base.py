"""What progressd asks of a store, whichever it is."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from progressd.core.batch import BatchStatus, JobBatch
from progressd.core.errors import CorruptRecord, StoreFailed
from progressd.core.job import Job
from progressd.core.messages import JobDeleted, StateChange
from progressd.core.status import JobStatus


class Change(NamedTuple):
    """A state change with its offset in the stream."""

    offset: int
    message: StateChange


class Deletion(NamedTuple):
    """The deletion of a job that somebody asked for, with its offset in the stream."""

    offset: int
    message: JobDeleted


class Filter(NamedTuple):
    """Which jobs to list; what is None does not matter."""

    statuses: Collection[JobStatus] | None = None
    kind: str | None = None
    labels: Collection[tuple[str, str]] = ()  # all of them


class Store(Protocol):
    """Durable jobs and state changes. Every method may raise StoreFailed, and what it did does not show then.

    What a disk failed under, in the middle of a commit, may show once the store is opened again: all of it, or nothing.
    """

    @property
    def id(self) -> str:
        """Names this store in cursors: another store's offsets mean nothing here."""

    @property
    def first_offset(self) -> int:
        """Greater than every offset that was given out before the store was opened, also by a daemon that crashed."""

    @property
    def damage(self) -> StoreFailed | None:
        """What is said once the store's content was found to be wrong: from then on it keeps no change."""

    @property
    def unreadable(self) -> CorruptRecord | None:
        """The last job, batch or change that was met and cannot be read; all others are as they were."""

    async def run(self) -> None:
        """Look after the store until cancelled."""

    async def reserve(self, offset: int) -> None:
        """Promise durably that no later daemon gives out an offset below this one."""

    async def commit(self, jobs: Iterable[Job], changes: Sequence[Change], batches: Iterable[JobBatch] = ()) -> None:
        """Keep the jobs and batches as they are now and the changes, all or nothing."""

    async def jobs(self, ids: Collection[str]) -> Mapping[str, Job]:
        """Those of the jobs that exist. Raises CorruptRecord for one of them that cannot be read."""

    async def readable_jobs(self, ids: Collection[str]) -> Mapping[str, Job]:
        """Return those of the jobs that exist, without those that cannot be read."""

    async def known(self, ids: Collection[str]) -> Collection[str]:
        """The ids of those of the jobs that exist, be they readable or not."""

    async def batches(self, ids: Collection[str]) -> Mapping[str, JobBatch]:
        """Those of the batches that exist."""

    async def unfinished_batches(self) -> list[JobBatch]:
        """Every batch that has not finished, oldest first."""

    async def jobs_of_batch(self, batch_id: str) -> list[Job]:
        """The jobs of a batch, as they were handed in."""

    async def unfinished(self) -> list[Job]:
        """Every job that has not finished, oldest first."""

    async def list_jobs(self, which: Filter, limit: int, offset: int) -> tuple[list[Job], int]:
        """A page of jobs, newest first, less those that cannot be read, and how many there are altogether.

        Where the jobs are large it has fewer than `limit`, but one at least.
        """

    async def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs have each status, be it none."""

    async def batch_counts(self) -> Mapping[BatchStatus, int]:
        """How many batches have each status, where there are any."""

    async def changes(self, after: int, upto: int, limit: int, job_id: str | None = None) -> list[Change]:
        """The first `limit` changes with after < offset ≤ upto, of one job or of all, oldest first.

        Of all, those that cannot be read are passed over; of one job, such a one raises CorruptRecord.
        """

    async def changes_of_unfinished(self, upto: int) -> list[Change]:
        """All changes with offset ≤ upto of the jobs that were unfinished at `upto`, oldest first."""

    async def moved(self, after: int, upto: int, limit: int) -> list[Job]:
        """Return the first `limit` jobs whose newest stored progress has after < offset ≤ upto, oldest progress first.

        Jobs that cannot be read are left out.
        """

    @property
    def oldest_cursor(self) -> int:
        """The smallest offset one can still resume from: what came after a smaller one may have been deleted."""

    async def last_seen(self) -> datetime | None:
        """When the newest job was created that was there before the store was opened; None without one."""

    @property
    def longest_deletion(self) -> float:
        """Seconds for which a deletion has kept others from writing, at most."""

    async def deletions(self, after: int, upto: int, limit: int) -> list[Deletion]:
        """Return the first `limit` deletions with after < offset ≤ upto, oldest first."""

    async def delete(self, ids: Collection[str], deletion: Deletion | None = None) -> list[str]:
        """Delete those of the jobs that have finished, as `delete_finished` does, and return their ids.

        With a `deletion`, which is kept for watchers that resume, every cursor stays valid.
        """

    async def delete_finished(self, before: datetime, most: int) -> list[str]:
        """Delete at most `most` of the jobs that finished before then, with their changes; their ids.

        In the order of their ends. Only as many as a few milliseconds are enough for, but one at least: nobody who
        writes waits for long. With the last of its jobs a batch goes as well. A job that cannot be read stays.
        """
