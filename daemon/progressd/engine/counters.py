"""Count events, jobs and batches since the daemon started."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Histogram

from progressd.core.batch import JobBatch
from progressd.core.messages import Completed, JobCreated, StatusChange
from progressd.store.base import Change


class Counters:
    """Counters since the start. `jobs`, `batches`: the number that entered each status. `pages`: of completed jobs."""

    def __init__(self) -> None:
        self.events = 0  # number of accepted events
        self.refused = 0  # number of rejected events
        self.jobs: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self.pages = 0
        self.processed = 0  # number of completed jobs
        self.processing_seconds = 0.0  # total duration of completed jobs
        self.processing = Histogram(
            "superbook_processing_seconds",
            "How long completed jobs took.",
            registry=None,
            buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
        )

    @property
    def mean_processing_seconds(self) -> float:
        """Return the mean duration of completed jobs; 0 if there are none."""
        return self.processing_seconds / self.processed if self.processed else 0.0

    def count(self, changes: Iterable[Change], batches: Iterable[JobBatch]) -> None:
        """Count committed changes. `batches`: the batches with a new status."""
        for change in changes:
            match change.message:
                case JobCreated(data=created):
                    self.jobs[created.status] += 1
                case StatusChange(data=changed):
                    self.jobs[changed.new_status] += 1
                case Completed(data=result):
                    self.pages += result.page_count or 0
                    self.processed += 1
                    self.processing_seconds += result.elapsed_seconds
                    self.processing.observe(result.elapsed_seconds)
        self.batches.update(batch.status for batch in batches)
