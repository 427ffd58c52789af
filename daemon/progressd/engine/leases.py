"""Leases: fail jobs whose producers have been silent for too long. Times are seconds of Trio's clock."""

import heapq
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog
import trio

from progressd.core.events import LeaseEvent, LeaseExpiredEvent, StalledEvent
from progressd.core.job import Job
from progressd.engine.registry import Registry

EXPIRES_AFTER: Final = 3  # duration of the silence, in leases, after which a job fails
EXPIRY_BATCH: Final = 100  # jobs at once, about a millisecond

log = structlog.get_logger(__name__)


class LeaseTimer:
    """Check the jobs with a lease, in one task: once per lease, however often their producers report."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._checks: list[tuple[float, str, float]] = []  # heap of times, jobs, and times at which the jobs stall
        self._until_check = trio.CancelScope()

    @property
    def next_check(self) -> float:
        """Return the time at which `expired` must be called; infinite without leases."""
        return self._checks[0][0] if self._checks else math.inf

    def begin(self, jobs: Iterable[Job], now: float) -> None:
        """Start the leases of new jobs. Jobs that already have one, and finished jobs, change nothing."""
        last_heard = self._registry.last_heard
        for job in jobs:
            if job.lease_seconds is None or job.pipeline is not None or job.status.finished or job.id in last_heard:
                continue
            last_heard[job.id] = now
            due = now + job.lease_seconds
            heapq.heappush(self._checks, (due, job.id, due))
        if len(self._checks) > 2 * len(last_heard) + 100:  # most checks are for finished jobs
            self._checks = [check for check in self._checks if check[1] in last_heard]
            heapq.heapify(self._checks)
        self._until_check.deadline = min(self._until_check.deadline, self.next_check)

    def expired(self, now: float) -> list[LeaseEvent]:
        """Return events for jobs whose producers are silent. An event is repeated once per lease until it is stored.

        A stalled job fails two leases later, however late it stalled. More events may be due while `next_check` is in
        the past.
        """
        events: list[LeaseEvent] = []
        while self.next_check <= now and len(events) < EXPIRY_BATCH:
            _, job_id, stalled_at = heapq.heappop(self._checks)
            job = self._registry.unfinished.get(job_id)
            if job is None or job.lease_seconds is None:  # the job has finished
                continue
            lease, heard = job.lease_seconds, self._registry.last_heard[job_id]
            due = heard + lease
            if due <= now and job.progress.stalled:
                due = max(heard + EXPIRES_AFTER * lease, stalled_at + (EXPIRES_AFTER - 1) * lease)
            else:
                stalled_at = due
            if due <= now:
                events.append(LeaseExpiredEvent(job_id) if job.progress.stalled else StalledEvent(job_id))
                due, stalled_at = now + lease, now
            heapq.heappush(self._checks, (due, job_id, stalled_at))
        return events

    async def run(self, submit: Callable[..., Awaitable[object]]) -> None:
        """Submit an event for each silent producer, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self.next_check) as self._until_check:
                await trio.sleep_forever()
            events = self.expired(trio.current_time())
            for event in events:
                log.info("producer is silent", job_id=event.job_id, lost=isinstance(event, LeaseExpiredEvent))
            await submit(*events)
