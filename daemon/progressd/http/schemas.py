"""Request and response bodies. Unknown values are absent, never null. Times are UTC, durations are seconds."""

from datetime import datetime
from typing import Final, TypeVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from progressd.core.batch import BatchStatus, JobBatch, batch_counts
from progressd.core.events import Priority, Registration
from progressd.core.job import Job
from progressd.core.messages import BatchProgressData, Cursor, JobStatus, ProgressData
from progressd.engine.forecasts import QueuePlace
from progressd.net.request import BasePath

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"
FORM: Final = "multipart/form-data"

T = TypeVar("T")


class NewJob(Registration, frozen=True):
    """The body of `POST /api/jobs`."""

    id: str | None = None


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
    queue: QueuePlace | UnsetType = UNSET  # while the job waits for the runner
    cursor: str


def job_view(job: Job, store_id: str, base: BasePath, place: QueuePlace | None = None) -> JobView:
    """Return a job for a client. `place`: in the queue of the runner."""
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
        queue=_known(place),
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
    return replace(job.progress, percent=percent, eta_seconds=UNSET, eta=UNSET)


def _known(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


class JobAccepted(Struct, frozen=True):
    """The job created from a file."""

    job_id: str
    status: JobStatus
    created_at: datetime


class JobPage(Struct, frozen=True):
    """A page of jobs; `total` counts all pages."""

    jobs: list[JobView]
    total: int
    limit: int
    offset: int


class RetryAccepted(Struct, frozen=True):
    """The new job with the same input and options."""

    job_id: str
    status: JobStatus
    message: str


class BatchAccepted(Struct, frozen=True):
    """The batch created from files."""

    batch_id: str
    status: BatchStatus
    job_count: int
    created_at: datetime


class BatchJobs(Struct, frozen=True):
    """The jobs of a batch, in order of submission."""

    batch_id: str
    jobs: list[BatchJobView]


class BatchCancelled(Struct, frozen=True):
    """The cancelled batch; finished jobs stay unchanged."""

    batch_id: str
    status: BatchStatus
    cancelled_jobs: int
    completed_jobs: int


class PipelineDefaults(Struct, frozen=True):
    """The defaults of a pipeline's options."""

    options: dict[str, object]


class Health(Struct, frozen=True, kw_only=True):
    """The health of the daemon.

    `status` is `healthy`; `failing` while the store cannot save; or `degraded` when a job cannot be read, or when the
    files of jobs use all their space. `error` is the reason. `tools` lists the programs that pipeline options need,
    and whether they are installed.
    """

    status: str
    version: str
    tools: dict[str, bool]
    pipelines: dict[str, PipelineDefaults]
    error: str | UnsetType = UNSET


class HealthState(Struct, frozen=True):
    """The status, and the reason if it is an error."""

    status: str
    error: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET  # seconds


class ServerStats(Struct, frozen=True):
    """The daemon."""

    version: str
    uptime_seconds: float
    started_at: datetime


class JobStats(Struct, frozen=True):
    """Counts of stored jobs, and the mean duration and the pages of jobs completed since the start."""

    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    cancelled_jobs: int
    active_jobs: int
    queued_jobs: int
    avg_processing_time: float
    total_pages_processed: int


class BatchStats(Struct, frozen=True):
    """Counts of stored batches; `completed` counts all finished batches."""

    total: int
    completed: int
    processing: int


class SystemStats(Struct, frozen=True):
    """The process."""

    memory_used_mb: float
    worker_count: int
    websocket_connections: int


class Stats(Struct, frozen=True):
    """Statistics of the daemon."""

    server: ServerStats
    jobs: JobStats
    batches: BatchStats
    system: SystemStats


class RateLimitStatus(Struct, frozen=True):
    """The request quota. The full burst is available again at `reset_at`."""

    enabled: bool
    requests_per_minute: int
    burst_size: int
    your_remaining: int
    reset_at: datetime


class AuthStatus(Struct, frozen=True):
    """The rights of the request's key, or whether a key is required."""

    authenticated: bool
    auth_required: bool | UnsetType = UNSET
    message: str | UnsetType = UNSET
    key_name: str | UnsetType = UNSET
    scopes: list[str] | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    expires_at: datetime | UnsetType | None = UNSET


class WatchToken(Struct, frozen=True):
    """A token to watch one topic, for browsers: they cannot send a key with a WebSocket or an EventSource."""

    token: str
    topic: str
    expires_at: datetime


class ErrorBody(Struct, frozen=True):
    """The reason as a sentence. 401, 403 and 429 have a word in `error` and the sentence in `message`.

    `retry_after` is in seconds.
    """

    error: str
    message: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET
