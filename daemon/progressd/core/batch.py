"""The batch: the jobs of files submitted together, counted by status."""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace

from progressd.core.events import Priority
from progressd.core.messages import (
    BatchCompleted,
    BatchCompletedData,
    BatchMessage,
    BatchProgress,
    BatchProgressData,
    JobStatus,
)


class BatchStatus(StrEnum):
    """The combined status of the jobs. The last four values are final."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    PARTIALLY_COMPLETED = "partially_completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Return whether the status is final."""
        return self not in (BatchStatus.QUEUED, BatchStatus.PROCESSING)


class JobBatch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch, without its jobs. Times are UTC; offsets are positions in the stream of messages."""

    id: str
    status: BatchStatus
    name: str = ""
    priority: Priority = Priority.NORMAL
    created_at: datetime
    created_offset: int = 0  # offset of the first message; larger for newer batches
    offset: int = 0  # offset of the newest message
    pending: int = 0  # number of jobs, like the next four fields
    processing: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    cancelled_as_batch: bool = field(default=False, name="called_off")  # the whole batch was cancelled, not single jobs
    started_at: datetime | None = None
    moved_at: datetime | None = None  # time at which the counts last changed
    completed_at: datetime | None = None

    @property
    def total(self) -> int:
        """Return the number of jobs."""
        return self.pending + self.processing + self.finished

    @property
    def finished(self) -> int:
        """Return the number of finished jobs."""
        return self.completed + self.failed + self.cancelled

    @property
    def estimated_completion(self) -> datetime | None:
        """Return the time at which the batch will finish at its current speed; None if unknown."""
        if self.started_at is None or self.moved_at is None or self.status.finished or not self.finished:
            return None
        return self.started_at + (self.moved_at - self.started_at) * self.total / self.finished


def moved(
    batch: JobBatch, before: JobStatus | None, after: JobStatus, now: datetime, *, as_batch: bool = False
) -> JobBatch:
    """Return the batch after a job changed its status from `before` (None for a new job) to `after`."""
    counts = {_count(after): getattr(batch, _count(after)) + 1}
    if before is not None:
        counts[_count(before)] = getattr(batch, _count(before)) - 1
    cancelled = as_batch or (batch.cancelled_as_batch and before is not None)  # a new job goes on with the batch
    batch = replace(batch, **counts, moved_at=now, cancelled_as_batch=cancelled)
    if after is JobStatus.PROCESSING and batch.started_at is None:
        batch = replace(batch, started_at=now)
    status = _status(batch)
    return replace(batch, status=status, completed_at=now if status.finished else None)


def batch_counts(batch: JobBatch) -> BatchProgressData:
    """Return the counts of jobs for a client."""
    return BatchProgressData(
        batch.completed, batch.processing, batch.pending, batch.failed, batch.total, batch.cancelled
    )


def batch_messages(batch: JobBatch) -> tuple[BatchMessage, ...]:
    """Return the messages about the current state of a batch."""
    progress = BatchProgress(batch.id, batch_counts(batch))
    if not batch.status.finished:
        return (progress,)
    ends = BatchCompletedData(batch.completed, batch.failed, batch.cancelled)
    return progress, BatchCompleted(batch.id, ends)


def _count(status: JobStatus) -> str:
    return "pending" if status is JobStatus.QUEUED else status.value


def _status(batch: JobBatch) -> BatchStatus:
    if batch.finished < batch.total:
        idle = batch.pending == batch.total
        return BatchStatus.QUEUED if idle else BatchStatus.PROCESSING
    if batch.cancelled_as_batch or batch.cancelled == batch.total:
        return BatchStatus.CANCELLED
    if batch.completed == batch.total:
        return BatchStatus.COMPLETED
    return BatchStatus.PARTIALLY_COMPLETED if batch.completed else BatchStatus.FAILED
