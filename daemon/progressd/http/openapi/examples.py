"""Examples for the OpenAPI document, one for each type of request and response."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec import UNSET

from progressd.core.batch import BatchStatus, Priority
from progressd.core.events import ProducerEvent, ProgressEvent, ReportedProgress
from progressd.core.messages import BatchProgressData, JobStatus, ProgressData
from progressd.http.routes.jobs import NewJob
from progressd.http.schemas.responses import (
    AuthStatus,
    BatchAccepted,
    BatchCancelled,
    BatchJobs,
    BatchStats,
    Health,
    HealthState,
    JobAccepted,
    JobPage,
    JobStats,
    PipelineDefaults,
    RateLimitStatus,
    RetryAccepted,
    ServerStats,
    Stats,
    SystemStats,
    WatchToken,
)
from progressd.http.schemas.views import BatchJobProgress, BatchJobView, BatchView, JobView
from progressd.producers.ndjson import Ack

ID: Final = "03efbe1e-1257-4729-9f9d-14e3b6d6e228"
BATCH: Final = "85f91f7b-1ab8-4f04-a5d0-1ca2d4cb8d86"
CREATED: Final = datetime(2026, 11, 24, 19, 28, 58, 994524, UTC)
OPTIONS: Final[dict[str, object]] = {"dpi": 300, "deskew": True, "upscale": True, "ocr": False, "advanced": False}

_job = JobView(
    id=ID,
    job_id=ID,
    status=JobStatus.PROCESSING,
    kind="pdf",
    pipeline="pdf",
    options=OPTIONS,
    progress=ProgressData(5, 12, "AI Upscaling", 41, 4.6),
    input_filename="scan.pdf",
    created_at=CREATED,
    started_at=CREATED + timedelta(milliseconds=1),
    attempt=1,
    labels={},
    cursor="cd06f405-30",
)
_batch_job = BatchJobView(
    job_id=ID,
    filename="scan.pdf",
    status=JobStatus.COMPLETED,
    download_url=f"/api/jobs/{ID}/download",
    progress=BatchJobProgress(100, "Finished"),
)
_jobs = JobStats(120, 112, 3, 1, 2, 2, 41.7, 1408)
_system = SystemStats(74.2, 4, 12)

EXAMPLES: Final[Mapping[Any, object]] = {
    JobView: _job,
    JobPage: JobPage([_job], 1, 50, 0),
    JobAccepted: JobAccepted(ID, JobStatus.QUEUED, CREATED),
    RetryAccepted: RetryAccepted(ID, JobStatus.QUEUED, "retrying job 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"),
    NewJob: NewJob(kind="backup", input_filename="db1", total_steps=3, labels={"host": "db1"}),
    ProducerEvent: ProgressEvent(ID, ReportedProgress(1, 3, "Tape 1")),
    Ack: Ack(UNSET, ok=True, cursor="cd06f405-37", job_id=ID),
    BatchAccepted: BatchAccepted(BATCH, BatchStatus.QUEUED, 2, CREATED),
    BatchView: BatchView(
        batch_id=BATCH,
        status=BatchStatus.PROCESSING,
        priority=Priority.HIGH,
        progress=BatchProgressData(1, 1, 0, 0, 2, 0),
        created_at=CREATED,
        started_at=CREATED + timedelta(milliseconds=1),
        estimated_completion=CREATED + timedelta(seconds=7),
        cursor="cd06f405-57",
    ),
    BatchJobs: BatchJobs(BATCH, [_batch_job]),
    BatchCancelled: BatchCancelled(BATCH, BatchStatus.CANCELLED, 1, 1),
    Health: Health(
        status="healthy", version="0.1.0", tools={"tesseract": True}, pipelines={"pdf": PipelineDefaults(OPTIONS)}
    ),
    HealthState: HealthState("ready"),
    Stats: Stats(ServerStats("0.1.0", 86431.204, CREATED), _jobs, BatchStats(9, 8, 1), _system),
    JobStats: _jobs,
    SystemStats: _system,
    RateLimitStatus: RateLimitStatus(True, 60, 10, 9, datetime(2026, 11, 25, 18, 0, 1, tzinfo=UTC)),
    AuthStatus: AuthStatus(True, key_name="scanner", scopes=["read", "write"], expires_at=None),
    WatchToken: WatchToken("eyJhbGciOiJIUzI1NiIs…", f"job:{ID}", CREATED + timedelta(minutes=15)),
}
