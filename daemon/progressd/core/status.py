"""The status of a job, one of five."""

from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    """queued → processing → completed | failed | cancelled. The last three are final."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Return whether the status is final."""
        return self not in (JobStatus.QUEUED, JobStatus.PROCESSING)


FINISHED: Final = frozenset(status for status in JobStatus if status.finished)
