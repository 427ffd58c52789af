"""What a batch of events comes to: decided and placed in the stream, but not durable and not told to anyone."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from progressd.broadcast.envelope import Envelope
from progressd.core.batch import BatchStatus, JobBatch, batch_messages, moved
from progressd.core.cursor import Cursor
from progressd.core.errors import CorruptRecord, NotFound, ProgressdError
from progressd.core.events import BatchCancelEvent, Event, RegisterEvent, checked_job_id
from progressd.core.job import Applied, Job, MaySee, apply
from progressd.core.messages import JobDeleted, JobDeletedData, PagePreview, Progress
from progressd.core.status import JobStatus
from progressd.engine.batches import Batches, placed_messages
from progressd.engine.registry import Registry
from progressd.net.base_path import BasePath
from progressd.store.base import Change

MAX_MESSAGES: Final = 5  # that one event can make: a start and a progress, or an end of two; and two of its batch


class Transaction:
    """Decides events one after the other. `stored`: the jobs they are about that are not in memory."""

    def __init__(
        self,
        registry: Registry,
        batches: Batches,
        stored: Mapping[str, Job | CorruptRecord],
        store_id: str,
        offset: int,
        now: datetime,
        base: BasePath,
    ) -> None:
        self._registry = registry
        self._batches = batches
        self._stored = stored
        self._store_id = store_id
        self._now = now
        self._base = base
        self.offset = offset  # of the next message
        self.jobs: dict[str, Job] = {}  # as the events leave them
        self.messages: dict[str, list[Envelope]] = {}  # by job
        self.published: list[Envelope] = []  # all of them, in order
        self.changes: list[Change] = []
        self.of_jobs: dict[str, JobBatch] = {}  # batches of jobs whose counts have changed

    def decide(self, event: Event, may_see: MaySee) -> Job | ProgressdError:
        """The job as the event leaves it, or what refuses the event: of an unseen job, what does of none.

        Only here is it known which job that is, since the events before this one may make it.
        """
        job: Job | CorruptRecord | None = self._known(event.job_id)
        try:
            if job is None:
                event = replace(event, job_id=checked_job_id(event.job_id))
                job = self._known(event.job_id) or self._stored.get(event.job_id)
            if isinstance(job, CorruptRecord):
                return job
            if job is not None and not may_see(job):
                raise NotFound(f"no job {job.id}")
            if job is None and isinstance(event, RegisterEvent) and self._is_own(event.cursor):
                raise NotFound(f"no job {event.job_id}")
            applied = apply(job, event, self._now)
        except ProgressdError as error:
            return error
        if not applied.messages:
            return applied.job
        if applied.job.batch_id is not None and applied.durable:
            self._count(
                applied.job.batch_id, job.status if job else None, applied.job, isinstance(event, BatchCancelEvent)
            )
        return self._place(applied)

    def place_counts(self) -> None:
        """Give each batch of jobs whose counts have changed a message of it, behind those of its jobs."""
        for of_jobs in tuple(self.of_jobs.values()):
            first = self.offset
            self.offset += len(batch_messages(of_jobs))
            placed = replace(of_jobs, created_offset=of_jobs.created_offset or first, offset=self.offset - 1)
            self.of_jobs[of_jobs.id] = placed
            self.published += placed_messages(placed, self._store_id)

    def hide_cursors(self) -> None:
        """Leave out where the messages are, so that nobody resumes behind a change that may show later."""
        for published in self.published:
            published.message = replace(published.message, cursor=UNSET)

    def turned_batches(self) -> list[JobBatch]:
        """The batches of jobs whose status is another than before, until they are kept."""
        before = self._batches.unfinished
        return [
            now for now in self.of_jobs.values() if (then := before(now.id)) is None or then.status is not now.status
        ]

    def _is_own(self, cursor: str) -> bool:
        """Whether this store gave the cursor. Raises InvalidInput where it is none."""
        return cursor != "" and Cursor.parse(cursor).store == self._store_id

    def _known(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id) or self._registry.known(job_id)

    def _place(self, applied: Applied) -> Job:
        """Give the messages their places in the stream, and the job what follows from them."""
        job = applied.job
        for message in applied.messages:
            offset = self.offset
            self.offset += 1
            placed = replace(message, cursor=str(Cursor(self._store_id, offset)), time=self._now)
            if job.batch_id is not None:
                placed = replace(placed, batch_id=job.batch_id)
            published = Envelope(offset, self._base.shown(placed), job.labels)
            self.published.append(published)
            if isinstance(placed, PagePreview):  # never kept
                continue
            self.messages.setdefault(job.id, []).append(published)
            if isinstance(placed, Progress):
                job = replace(job, offset=offset, progress_offset=offset, progress_at=self._now)
            else:
                self.changes.append(Change(offset, placed))
                job = replace(job, offset=offset, created_offset=job.created_offset or offset)
        if job.offset == applied.job.offset:
            return job
        self.jobs.pop(job.id, None)  # to the end: the registry keeps finished jobs in the order of their ends
        self.jobs[job.id] = job
        return job

    def _count(self, batch_id: str, before: JobStatus | None, job: Job, called_off: bool) -> None:
        """Count the job of a batch in, with the status it has now; its first job makes the batch."""
        known = self.of_jobs.get(batch_id) or self._batches.unfinished(batch_id)
        if known is None:
            known = JobBatch(id=batch_id, status=BatchStatus.QUEUED, priority=job.priority, created_at=self._now)
        self.of_jobs[batch_id] = moved(known, before, job.status, self._now, called_off=called_off)


def deletion_message(job: Job, cursor: Cursor, now: datetime) -> JobDeleted:
    """Return the message that watchers get when a job is deleted."""
    return JobDeleted(job.id, JobDeletedData(job.status, job.labels), str(cursor), now, job.batch_id or UNSET)
