"""Responses other than jobs and batches. Times are UTC, durations are seconds."""

from datetime import datetime

from msgspec import UNSET, Struct, UnsetType

from progressd.core.batch import BatchStatus
from progressd.core.messages import JobStatus
from progressd.http.schemas.views import BatchJobView, JobView


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
