"""The remaining times of running jobs, and the earlier runs from which they follow.

Jobs of the same kind, pipeline, host and shape of command share their runs. Only ingest uses this, in its own task.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from progressd.core.eta import MIN_SECONDS, Estimator, Expected, Run, expected, shape_of, words_of
from progressd.core.events import ReportedProgress
from progressd.core.job import Job
from progressd.core.messages import Eta, JobStatus
from progressd.store.base import MAX_RUNS, RUNS_PER_KEY, KeyedRun, Store

RESIZED: Final = 0.05  # a larger change of the number of steps begins a new estimate


class Forecasts:
    """Estimate the remaining time of each running job."""

    def __init__(self) -> None:
        self._runs = dict[str, list[Run]]()  # the newest is the last, in each list and of the lists
        self._count = 0
        self._running = dict[str, Estimator]()

    async def load(self, store: Store) -> None:
        """Read the earlier runs. Raises StoreFailed."""
        for one in await store.runs():
            self._add(one)

    def eta(self, job: Job, given: ReportedProgress, now: datetime) -> Eta | None:
        """Return the remaining time of a job with this progress; None if it is unknown."""
        assert job.started_at is not None
        elapsed = (now - job.started_at).total_seconds()
        estimator = self._running.get(job.id)
        current, size = given.current_step or 0, given.total_steps or 0
        if estimator is None or elapsed < estimator.elapsed:  # such as after it was queued again
            estimator = self._running[job.id] = Estimator(self._expected(job, size), size)
        elif size != estimator.size and abs(size - estimator.size) > RESIZED * estimator.size:
            estimator.use(self._expected(job, size), size)
        if given.percent is not None:
            done = min(given.percent / 100, 1.0)
        elif size:
            done = min(current / size, 1.0)
        else:
            done = 0.0
        return estimator.estimate(max(elapsed, 0.0), done, given.eta_seconds)

    def run_of(self, job: Job) -> KeyedRun | None:
        """Return what is kept of a finished job; None if it failed or was too short."""
        if job.status is not JobStatus.COMPLETED or job.started_at is None or job.completed_at is None:
            return None
        seconds = (job.completed_at - job.started_at).total_seconds()
        if seconds < MIN_SECONDS:
            return None
        estimator = self._running.get(job.id) or Estimator(size=job.progress.total_steps)
        return KeyedRun(_key(job), estimator.run(words_of(job.name, job.options), seconds))

    def finish(self, jobs: Iterable[Job], runs: Iterable[KeyedRun]) -> None:
        """Forget the estimates of finished jobs, and keep the runs, which are durable."""
        for job in jobs:
            if job.status is not JobStatus.PROCESSING:
                self._running.pop(job.id, None)
        for one in runs:
            self._add(one)

    def _expected(self, job: Job, size: int) -> Expected | None:
        runs = self._runs.get(_key(job)) if self._runs else None
        return expected(runs, words_of(job.name, job.options), size) if runs else None

    def _add(self, one: KeyedRun) -> None:
        runs = self._runs.pop(one.key, [])
        runs.append(one.run)
        self._runs[one.key] = runs
        self._count += 1
        if len(runs) > RUNS_PER_KEY:
            del runs[0]
            self._count -= 1
        if self._count > MAX_RUNS:
            self._count -= len(self._runs.pop(next(iter(self._runs))))


def _key(job: Job) -> str:
    """Return the text that similar jobs have in common."""
    return "\n".join((job.kind, job.pipeline or "", job.labels.get("host", ""), shape_of(job.name)))
