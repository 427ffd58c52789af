"""Unfinished jobs that need attention: stalled ones, and those that take longer than usual."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import trio
from msgspec.structs import replace

from progressd.core.eta import Forecasts
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.engine.registry import Registry

MAX_AGE: Final = 1.0  # seconds for which the list is valid
MAX_ESTIMATES: Final = 50  # jobs whose usual duration is computed at a time, each in 0.1 to 0.2 ms


class Attention:
    """The unfinished jobs that need attention. They are found on request, at most once a second."""

    def __init__(self, registry: Registry, forecasts: Forecasts) -> None:
        self._registry = registry
        self._forecasts = forecasts
        self._offsets = list[int]()
        self._until = -math.inf

    def offsets(self) -> list[int]:
        """Return the offsets of the first messages of these jobs. Finding them takes 4 ms for 10,000 jobs."""
        if (now := trio.current_time()) >= self._until:
            self._offsets = self._found(datetime.now(UTC))
            self._until = now + MAX_AGE
        return self._offsets

    def shown(self, job: Job) -> Job:
        """Return the job for clients: its progress says whether it takes longer than usual."""
        if job.status is JobStatus.PROCESSING and self._forecasts.is_slow(job, datetime.now(UTC)):
            return replace(job, progress=replace(job.progress, slow=True))
        return job

    async def estimate(self, jobs: Iterable[Job]) -> None:
        """Compute the usual durations of jobs for `shown` in several passes of the event loop, as after a restart."""
        new = [job.id for job in jobs if job.status is JobStatus.PROCESSING and not self._forecasts.estimates(job)]
        for number, job_id in enumerate(new, 1):
            if (job := self._registry.unfinished.get(job_id)) is not None:
                self._forecasts.is_slow(job, datetime.now(UTC))
            if number % MAX_ESTIMATES == 0:
                await trio.lowlevel.checkpoint()

    def _found(self, now: datetime) -> list[int]:
        found, estimates = list[int](), 0
        for job in self._registry.unfinished.values():
            slow = False
            if job.status is JobStatus.PROCESSING:
                if not self._forecasts.estimates(job):
                    estimates += 1  # such as after a restart
                if estimates <= MAX_ESTIMATES or self._forecasts.estimates(job):
                    slow = self._forecasts.is_slow(job, now)
            if slow or job.progress.stalled:
                found.append(job.created_offset)
        return found
