"""Accept or reject each event of a transaction, and assign offsets to the messages. Nothing is durable or visible
yet."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from progressd.broadcast.envelope import Envelope
from progressd.core.batch import BatchStatus, JobBatch, batch_messages, moved
from progressd.core.errors import CorruptRecord, NotFound, ProgressdError
from progressd.core.eta import Forecasts, KeyedRun
from progressd.core.events import BatchCancelEvent, Event, RegisterEvent, SubmitEvent, checked_job_id
from progressd.core.job import Applied, Job, MaySee, apply
from progressd.core.messages import (
    Cursor,
    JobDeleted,
    JobDeletedData,
    JobStatus,
    PagePreview,
    PagePreviewData,
    Progress,
    cursor_text,
)
from progressd.engine.registry import Batches, Registry, placed_messages
from progressd.net.request import BasePath
from progressd.store.base import Change

MAX_MESSAGES: Final = 5  # upper bound of messages per event, for example a start, a progress, and two about the batch


class Transaction:
    """Accept or reject events, one after the other.

    `stored`: the jobs of these events that are not in memory. `finished`: the finished batches that the events extend.
    """

    def __init__(
        self,
        registry: Registry,
        batches: Batches,
        stored: Mapping[str, Job | CorruptRecord],
        store_id: str,
        offset: int,
        now: datetime,
        base: BasePath,
        forecasts: Forecasts,
        finished: Mapping[str, JobBatch] = MappingProxyType({}),
    ) -> None:
        self._registry = registry
        self._known_batches = batches
        self._stored = stored
        self._store_id = store_id
        self._now = now
        self._base = base
        self._forecasts = forecasts
        self._finished_batches = finished
        self.offset = offset  # offset of the next message
        self.jobs: dict[str, Job] = {}  # changed jobs, in their state after the events
        self.messages: dict[str, list[Envelope]] = {}  # messages by job
        self.published: list[Envelope] = []  # all messages, in order
        self.changes: list[Change] = []
        self.batches: dict[str, JobBatch] = {}  # batches whose counts have changed
        self.runs: list[KeyedRun] = []  # of completed jobs
        self.previews: list[tuple[str, PagePreviewData]] = []  # with the ids of their jobs

    def decide(self, event: Event, may_see: MaySee) -> Job | ProgressdError:
        """Return the job after the event, or the error that rejects the event: NotFound for an invisible job.

        Visibility is checked here, because an earlier event of the transaction may create the job.
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
            applied = apply(job, event, self._now, self._forecasts.eta)
        except ProgressdError as error:
            return error
        if not applied.messages:
            return applied.job
        if applied.durable and applied.job.status.finished and (run := self._forecasts.run_of(applied.job)) is not None:
            self.runs.append(run)
        if applied.job.batch_id is not None and applied.durable:
            self._count(applied.job.batch_id, job.status if job else None, applied.job, event)
        return self._place(applied)

    def place_batches(self) -> None:
        """Add the messages of each batch whose counts have changed, after the messages of its jobs."""
        for batch in tuple(self.batches.values()):
            first = self.offset
            self.offset += len(batch_messages(batch))
            placed = replace(batch, created_offset=batch.created_offset or first, offset=self.offset - 1)
            self.batches[batch.id] = placed
            self.published += placed_messages(placed, self._store_id)

    def hide_cursors(self) -> None:
        """Remove the cursors, so that no client resumes after a change that may become visible later."""
        for envelope in self.published:
            envelope.message = replace(envelope.message, cursor=UNSET)

    def batches_with_new_status(self) -> list[JobBatch]:
        """Return the batches whose status has changed. Call this before `Batches.keep`."""
        before = self._known_batches.unfinished
        return [
            now for now in self.batches.values() if (then := before(now.id)) is None or then.status is not now.status
        ]

    def _is_own(self, cursor: str) -> bool:
        """Return whether the cursor is from this store. Raises InvalidInput if the string is not a cursor."""
        return cursor != "" and Cursor.parse(cursor).store == self._store_id

    def _known(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id) or self._registry.known(job_id)

    def _place(self, applied: Applied) -> Job:
        """Assign offsets to the messages, and store these offsets in the job."""
        job = applied.job
        for message in applied.messages:
            offset = self.offset
            self.offset += 1
            cursor = cursor_text(self._store_id, offset)
            placed = replace(message, cursor=cursor, time=self._now, batch_id=job.batch_id or UNSET)
            shown = placed if isinstance(placed, Progress) else self._base.shown(placed)  # only results have URLs
            envelope = Envelope(offset, shown, job.labels)
            self.published.append(envelope)
            if isinstance(placed, PagePreview):  # previews are never stored
                self.previews.append((job.id, placed.data))
                continue
            self.messages.setdefault(job.id, []).append(envelope)
            if isinstance(placed, Progress):
                job = replace(job, offset=offset, progress_offset=offset, progress_at=self._now)
            else:
                self.changes.append(Change(offset, placed))
                job = replace(job, offset=offset, created_offset=job.created_offset or offset)
        if job.offset == applied.job.offset:
            return job
        # Move the job to the end: the registry keeps finished jobs in the order in which they ended.
        self.jobs.pop(job.id, None)
        self.jobs[job.id] = job
        return job

    def _count(self, batch_id: str, before: JobStatus | None, job: Job, event: Event) -> None:
        """Count the new status of a job in its batch. The first job creates the batch, and a later one reopens it."""
        known = self.batches.get(batch_id) or self._known_batches.unfinished(batch_id)
        known = known or self._finished_batches.get(batch_id)
        if known is None:
            name = event.batch_name if isinstance(event, SubmitEvent) else ""
            known = JobBatch(
                id=batch_id, status=BatchStatus.QUEUED, name=name, priority=job.priority, created_at=self._now
            )
        as_batch = isinstance(event, BatchCancelEvent)
        self.batches[batch_id] = moved(known, before, job.status, self._now, as_batch=as_batch)


def deletion_message(job: Job, cursor: Cursor, now: datetime) -> JobDeleted:
    """Return the message about a deleted job."""
    return JobDeleted(job.id, JobDeletedData(job.status, job.labels), str(cursor), now, job.batch_id or UNSET)
