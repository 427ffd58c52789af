"""Jobs and batches as JSON. Unknown values are absent, never null."""

from datetime import datetime
from typing import TypeVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from progressd.core.batch import BatchStatus, JobBatch, Priority, batch_counts
from progressd.core.cursor import Cursor
from progressd.core.job import Job
from progressd.core.messages import BatchProgressData, ProgressData
from progressd.core.status import JobStatus
from progressd.net.base_path import BasePath

T = TypeVar("T")


class JobView(Struct, frozen=True, kw_only=True):
    """A job. `id` and `job_id` are the same. Times are UTC."""

    id: str
    job_id: str
    status: JobStatus
    kind: str
    name: str | UnsetType = UNSET
    pipeline: str | UnsetType = UNSET  # if the daemon runs the job
    options: dict[str, object]
    progress: ProgressData
    input_filename: str | UnsetType = UNSET
    output_path: str | UnsetType = UNSET
    created_at: datetime
    started_at: datetime | UnsetType = UNSET
    completed_at: datetime | UnsetType = UNSET
    error: str | UnsetType = UNSET
    page_count: int | UnsetType = UNSET
    elapsed_seconds: float | UnsetType = UNSET
    attempt: int
    lease_seconds: float | UnsetType = UNSET
    labels: dict[str, str]
    batch_id: str | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET  # if the job belongs to a batch
    cursor: str


def job_view(job: Job, store_id: str, base: BasePath) -> JobView:
    """Return a job for a client."""
    return JobView(
        id=job.id,
        job_id=job.id,
        status=job.status,
        kind=job.kind,
        name=_known(job.name),
        pipeline=_known(job.pipeline),
        options=job.options,
        progress=_progress(job),
        input_filename=_known(job.input_filename),
        output_path=_known(base.result(job.id, job.output_path)),
        created_at=job.created_at,
        started_at=_known(job.started_at),
        completed_at=_known(job.completed_at),
        error=_known(job.error),
        page_count=_known(job.page_count),
        elapsed_seconds=_known(job.elapsed_seconds),
        attempt=job.attempt,
        lease_seconds=_known(job.lease_seconds),
        labels=job.labels,
        batch_id=_known(job.batch_id),
        priority=UNSET if job.batch_id is None else job.priority,
        cursor=str(Cursor(store_id, job.offset)),
    )


class BatchView(Struct, frozen=True, kw_only=True):
    """A batch. `estimated_completion` is present while only some of the jobs have finished."""

    batch_id: str
    status: BatchStatus
    priority: Priority
    progress: BatchProgressData
    created_at: datetime
    started_at: datetime | UnsetType = UNSET
    completed_at: datetime | UnsetType = UNSET
    estimated_completion: datetime | UnsetType = UNSET
    cursor: str


def batch_view(batch: JobBatch, store_id: str) -> BatchView:
    """Return a batch for a client."""
    return BatchView(
        batch_id=batch.id,
        status=batch.status,
        priority=batch.priority,
        progress=batch_counts(batch),
        created_at=batch.created_at,
        started_at=_known(batch.started_at),
        completed_at=_known(batch.completed_at),
        estimated_completion=_known(batch.estimated_completion),
        cursor=str(Cursor(store_id, batch.offset)),
    )


class BatchJobProgress(Struct, frozen=True):
    """The progress of a job in a batch."""

    percent: int
    step_name: str


class BatchJobView(Struct, frozen=True, kw_only=True):
    """A summary of a job in a batch. `download_url` is present once there is a result."""

    job_id: str
    filename: str
    status: JobStatus
    download_url: str | UnsetType = UNSET
    progress: BatchJobProgress


def batch_job_view(job: Job, base: BasePath) -> BatchJobView:
    """Return a job of a batch for a client."""
    return BatchJobView(
        job_id=job.id,
        filename=job.input_filename or "",
        status=job.status,
        download_url=_known(base.result(job.id, job.output_path)),
        progress=BatchJobProgress(_progress(job).percent, job.progress.step_name),
    )


def _progress(job: Job) -> ProgressData:
    """Return the progress: 100 percent for a completed job, and no remaining time for a finished one."""
    if not job.status.finished:
        return job.progress
    percent = 100 if job.status is JobStatus.COMPLETED else job.progress.percent
    return replace(job.progress, percent=percent, eta_seconds=UNSET)


def _known(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value
