"""What a job looks like over REST: what is not known yet is absent, never null."""

from datetime import datetime
from typing import TypeVar

from msgspec import UNSET, Struct, UnsetType

from progressd.core.cursor import Cursor
from progressd.core.job import Job
from progressd.core.messages import ProgressData
from progressd.core.status import JobStatus

T = TypeVar("T")


class JobView(Struct, frozen=True, kw_only=True):
    """The JSON of a job; `id` and `job_id` are the same. Times are UTC, `elapsed_seconds` seconds."""

    id: str
    job_id: str
    status: JobStatus
    kind: str
    pipeline: str | UnsetType  # of a job that the daemon runs
    options: dict[str, object]
    progress: ProgressData
    input_filename: str | UnsetType
    output_path: str | UnsetType
    created_at: datetime
    started_at: datetime | UnsetType
    completed_at: datetime | UnsetType
    error: str | UnsetType
    page_count: int | UnsetType
    elapsed_seconds: float | UnsetType
    attempt: int
    lease_seconds: float | UnsetType
    labels: dict[str, str]
    cursor: str


def job_view(job: Job, store_id: str) -> JobView:
    """A job for a client."""
    return JobView(
        id=job.id,
        job_id=job.id,
        status=job.status,
        kind=job.kind,
        pipeline=_known(job.pipeline),
        options=job.options,
        progress=job.progress,
        input_filename=_known(job.input_filename),
        output_path=_known(job.output_path),
        created_at=job.created_at,
        started_at=_known(job.started_at),
        completed_at=_known(job.completed_at),
        error=_known(job.error),
        page_count=_known(job.page_count),
        elapsed_seconds=_known(job.elapsed_seconds),
        attempt=job.attempt,
        lease_seconds=_known(job.lease_seconds),
        labels=job.labels,
        cursor=str(Cursor(store_id, job.offset)),
    )


def _known(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value
