"""What requests are answered, where that is neither a job nor a batch itself. Times are UTC, durations seconds."""

from datetime import datetime

from msgspec import UNSET, Struct, UnsetType

from progressd.core.batch import BatchStatus
from progressd.core.status import JobStatus
from progressd.http.schemas.views import BatchJobView, JobView


class JobAccepted(Struct, frozen=True):
    """The file has become a job."""

    job_id: str
    status: JobStatus
    created_at: datetime


class JobPage(Struct, frozen=True):
    """Some jobs of a list; `total`: how many there are altogether."""

    jobs: list[JobView]
    total: int
    limit: int
    offset: int


class RetryAccepted(Struct, frozen=True):
    """There is a new job over the same input and options."""

    job_id: str
    status: JobStatus
    message: str


class BatchAccepted(Struct, frozen=True):
    """The files have become jobs."""

    batch_id: str
    status: BatchStatus
    job_count: int
    created_at: datetime


class BatchJobs(Struct, frozen=True):
    """The jobs of a batch, as they were handed in."""

    batch_id: str
    jobs: list[BatchJobView]


class BatchCancelled(Struct, frozen=True):
    """The jobs that had not finished are cancelled."""

    batch_id: str
    status: BatchStatus
    cancelled_jobs: int
    completed_jobs: int


class PipelineDefaults(Struct, frozen=True):
    """The defaults of a pipeline's options."""

    options: dict[str, object]


class Health(Struct, frozen=True, kw_only=True):
    """`status`: healthy, failing while the store keeps nothing, or degraded where it has a job that cannot be read,
    or where the files of jobs take as much as they may.

    `error`: why; `tools`: the programs that options of pipelines need, and whether they are installed.
    """

    status: str
    version: str
    tools: dict[str, bool]
    pipelines: dict[str, PipelineDefaults]
    error: str | UnsetType = UNSET


class HealthState(Struct, frozen=True):
    """In a word, and why."""

    status: str
    error: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET  # seconds


class ServerStats(Struct, frozen=True):
    """The daemon."""

    version: str
    uptime_seconds: float
    started_at: datetime


class JobStats(Struct, frozen=True):
    """The jobs there are; and how long those took that completed since the start, and how many pages they had."""

    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    cancelled_jobs: int
    active_jobs: int
    queued_jobs: int
    avg_processing_time: float
    total_pages_processed: int


class BatchStats(Struct, frozen=True):
    """The batches there are; `completed`: all that have finished."""

    total: int
    completed: int
    processing: int


class SystemStats(Struct, frozen=True):
    """The process."""

    memory_used_mb: float
    worker_count: int
    websocket_connections: int


class Stats(Struct, frozen=True):
    """The daemon in numbers."""

    server: ServerStats
    jobs: JobStats
    batches: BatchStats
    system: SystemStats


class RateLimitStatus(Struct, frozen=True):
    """How often one may ask, and still may; `reset_at` is when all of it is there again."""

    enabled: bool
    requests_per_minute: int
    burst_size: int
    your_remaining: int
    reset_at: datetime


class AuthStatus(Struct, frozen=True):
    """The key that came with the request, or whether there has to be one."""

    authenticated: bool
    auth_required: bool | UnsetType = UNSET
    message: str | UnsetType = UNSET
    key_name: str | UnsetType = UNSET
    scopes: list[str] | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    expires_at: datetime | UnsetType | None = UNSET


class WatchToken(Struct, frozen=True):
    """A token for one topic, for browsers, which cannot send a key with a WebSocket or an EventSource."""

    token: str
    topic: str
    expires_at: datetime


class ErrorBody(Struct, frozen=True):
    """Why not, in a sentence; for 401, 403 and 429 a word, and the sentence in `message`. `retry_after`: seconds."""

    error: str
    message: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET
