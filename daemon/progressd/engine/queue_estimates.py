"""The places of the jobs that wait for the runner, and the times at which they may start."""

import math
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush
from typing import Final

import trio
from msgspec import UNSET, Struct, UnsetType

from progressd.core.eta import Forecasts, key_of, words_of
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.engine.registry import Registry

MAX_PLACES: Final = 1000  # jobs of the queue whose place is known
MAX_ESTIMATES: Final = 50  # durations that are estimated at a time, each in up to 0.1 ms
MAX_AGE: Final = 1.0  # seconds for which the places are valid


class QueuePlace(Struct, frozen=True, omit_defaults=True):
    """The position of a waiting job, from 1, and its expected start, if the durations of the earlier jobs are known."""

    position: int
    expected_start: datetime | UnsetType = UNSET


class QueueEstimates:
    """The places of the jobs that wait for the runner. They are computed on request, at most once a second."""

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
                alike = (key_of(job), words_of(job.name, job.options), job.progress.total_steps)
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
