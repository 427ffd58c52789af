"""The remaining times of running jobs, and the earlier runs from which they follow.

Jobs of the same kind, pipeline, host and shape of command share their runs. Only ingest uses this, in its own task.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush
from typing import Final

import trio
from msgspec import UNSET, Struct, UnsetType

from progressd.core.eta import MIN_SECONDS, Estimator, Expected, Run, expected, hashed, shape_of, words_of
from progressd.core.events import ReportedProgress
from progressd.core.job import Job
from progressd.core.messages import Eta, JobStatus
from progressd.engine.registry import Registry
from progressd.store.base import MAX_RUNS, RUNS_PER_KEY, KeyedRun, Store

MAX_PLACES: Final = 1000  # jobs of the queue whose place is known
MAX_ESTIMATES: Final = 50  # durations that are estimated at a time, each in up to 0.1 ms
MAX_AGE: Final = 1.0  # seconds for which the places are valid
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
        done = current / size if size else 0.0
        if given.percent is not None:
            done = given.percent / 100
        # two calls of `min` and `max` would take as long as the rest
        return estimator.estimate(elapsed if elapsed > 0 else 0.0, done if done < 1 else 1.0, given.eta_seconds)

    def duration(self, job: Job) -> float | None:
        """Return the expected duration of a job, in seconds; None if it is unknown."""
        known = self._expected(job, job.progress.total_steps)
        return None if known is None else known.seconds

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


class QueuePlace(Struct, frozen=True, omit_defaults=True):
    """The position of a waiting job, from 1, and the time at which it may start, if the history knows the others."""

    position: int
    expected_start: datetime | UnsetType = UNSET


class Queue:
    """The places of the jobs that wait for the runner. They are computed at most once a second, if somebody asks."""

    def __init__(self, registry: Registry, forecasts: Forecasts, slots: int) -> None:
        self._registry = registry
        self._forecasts = forecasts
        self._slots = slots
        self._places = dict[str, QueuePlace]()
        self._until = -math.inf

    def place(self, job: Job) -> QueuePlace | None:
        """Return the place of a job; None if the job does not wait for the runner, or is far back."""
        if job.status is not JobStatus.QUEUED or job.pipeline is None:
            return None
        if (now := trio.current_time()) >= self._until:
            self._places = self._computed(datetime.now(UTC))
            self._until = now + MAX_AGE
        return self._places.get(job.id)

    def _computed(self, now: datetime) -> dict[str, QueuePlace]:
        """Return the places of the first jobs. A slot is free when its job is expected to end."""
        running = [
            job
            for job in self._registry.unfinished.values()
            if job.pipeline is not None and job.status is JobStatus.PROCESSING
        ]
        ends: list[datetime | None] = [self._end(job, now) for job in running]
        free = [end for end in ends if end is not None]
        known = len(free) == len(ends)
        free += [now] * (self._slots - len(running))
        heapify(free)
        places = dict[str, QueuePlace]()
        durations = dict[tuple[object, ...], float | None]()  # most waiting jobs are alike
        for position, job in enumerate(self._registry.queued(MAX_PLACES), 1):
            if known and free:
                start = heappop(free)
                places[job.id] = QueuePlace(position, start.replace(microsecond=0))
                alike = (_key(job), words_of(job.name, job.options), job.progress.total_steps)
                if alike not in durations and len(durations) < MAX_ESTIMATES:
                    durations[alike] = self._forecasts.duration(job)
                seconds = durations.get(alike)
                known = seconds is not None
                heappush(free, start + timedelta(seconds=seconds or 0))
            else:
                places[job.id] = QueuePlace(position)
        return places

    def _end(self, job: Job, now: datetime) -> datetime | None:
        """Return the time at which a running job is expected to end; None if it is unknown."""
        since, seconds = job.progress_at, job.progress.eta_seconds
        if since is None or seconds is UNSET:
            since, known = job.started_at, self._forecasts.duration(job)
            if since is None or known is None:
                return None
            seconds = known
        return max(since + timedelta(seconds=seconds), now)


def _key(job: Job) -> str:
    """Return a hash of what similar jobs have in common."""
    return hashed("\n".join((job.kind, job.pipeline or "", job.labels.get("host", ""), shape_of(job.name))))
