"""Valid ids, times and messages for tests."""

from datetime import UTC, datetime
from pathlib import Path

import progressd_pdf
from progressd.core.job import Job
from progressd.core.messages import (
    Completed,
    CompletedData,
    JobCreated,
    JobCreatedData,
    JobStatus,
    Progress,
    ProgressData,
    StatusChange,
    StatusChangeData,
)

SCAN = Path(progressd_pdf.__file__).with_name("scan") / "sample-scan.pdf"  # four pages
NOW = datetime(2026, 3, 1, 12, 30, 15, 250_000, UTC)


def job_id(number: int) -> str:
    return f"6e4d1c9e-0d5c-4f0e-9d3a-{number:012x}"


ID = job_id(1)


def job(number: int = 1, status: JobStatus = JobStatus.QUEUED, **fields: object) -> Job:
    """Return a job; its number is its position in lists."""
    given: dict[str, object] = {"id": job_id(number), "kind": "job", "created_at": NOW, "created_offset": number}
    return Job(**{**given, "status": status, **fields})  # type: ignore[arg-type]


def created(id_: str = ID) -> JobCreated:
    return JobCreated(id_, JobCreatedData("job", JobStatus.QUEUED, NOW))


def started(id_: str = ID) -> StatusChange:
    return StatusChange(id_, StatusChangeData(JobStatus.QUEUED, JobStatus.PROCESSING))


def moved(step: int, id_: str = ID, total: int = 100) -> Progress:
    return Progress(id_, ProgressData(step, total, f"Step {step}", 100 * step // total))


def succeeded(id_: str = ID) -> tuple[StatusChange, Completed]:
    """Return the two messages of a successful end."""
    change = StatusChange(id_, StatusChangeData(JobStatus.PROCESSING, JobStatus.COMPLETED))
    return change, Completed(id_, CompletedData(None, 4.5, None, None))


def cancelled(id_: str = ID) -> StatusChange:
    return StatusChange(id_, StatusChangeData(JobStatus.PROCESSING, JobStatus.CANCELLED))
