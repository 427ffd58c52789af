"""Leases: fail jobs whose producers have been silent for too long. Times are seconds of Trio's clock."""

import heapq
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog
import trio

from progressd.core.events import Event, LeaseEvent, LeaseExpiredEvent, StalledEvent
from progressd.core.job import Job

EXPIRES_AFTER: Final = 3  # lease durations of silence
EXPIRY_BATCH: Final = 100  # jobs at once, about a millisecond

log = structlog.get_logger(__name__)


class _Lease:
    """The lease of one job: its duration, the time of the last event, and the time at which the job stalled."""

    __slots__ = ("last_heard", "seconds", "stalled_since")

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds = seconds
        self.last_heard = now
        self.stalled_since: float | None = None

    @property
    def due(self) -> float:
        """The time of the next check. A stalled job has two further leases after it stalled, however late the check."""
        if self.stalled_since is None:
            return self.last_heard + self.seconds
        return max(
            self.last_heard + EXPIRES_AFTER * self.seconds, self.stalled_since + (EXPIRES_AFTER - 1) * self.seconds
        )


class Leases:
    """The leases of unfinished jobs. A job is checked once per lease, however often its producer reports."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._checks: list[tuple[float, str]] = []  # heap of times and jobs; no check is later than `due`

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def next_check(self) -> float:
        """The latest time at which `expired` must be called; infinite without leases."""
        return self._checks[0][0] if self._checks else math.inf

    def keep(self, job: Job, now: float) -> None:
        """Update the lease of a job. The lease of a new job begins."""
        if job.lease_seconds is None or job.pipeline is not None:
            return
        if job.status.finished:
            self._leases.pop(job.id, None)
            if len(self._checks) > 2 * len(self._leases) + 100:  # most checks are for finished jobs
                self._checks = [check for check in self._checks if check[1] in self._leases]
                heapq.heapify(self._checks)
            return
        lease = self._leases.get(job.id)
        if lease is None:
            lease = self._leases[job.id] = _Lease(job.lease_seconds, now)
            heapq.heappush(self._checks, (lease.due, job.id))
        if not job.progress.stalled:
            lease.stalled_since = None
        elif lease.stalled_since is None:
            lease.stalled_since = now

    def renew(self, job_id: str, now: float) -> None:
        """Record that the producer of a job has sent an event."""
        lease = self._leases.get(job_id)
        if lease is not None:
            lease.last_heard = now

    def expired(self, now: float) -> list[LeaseEvent]:
        """Return events for jobs whose producers are silent. An event is repeated once per lease until it is stored.

        Further events may be due while `next_check` is in the past.
        """
        events: list[LeaseEvent] = []
        while self._checks and self._checks[0][0] <= now and len(events) < EXPIRY_BATCH:
            _, job_id = heapq.heappop(self._checks)
            lease = self._leases.get(job_id)
            if lease is None:  # the job has finished
                continue
            due = lease.due
            if due <= now:
                events.append(StalledEvent(job_id) if lease.stalled_since is None else LeaseExpiredEvent(job_id))
                due = now + lease.seconds
            heapq.heappush(self._checks, (due, job_id))
        return events


class LeaseTimer:
    """Check the leases on Trio's clock, in one task for all jobs."""

    def __init__(self) -> None:
        self._leases = Leases()
        self._until_check = trio.CancelScope()

    def __bool__(self) -> bool:
        return bool(self._leases)

    def keep(self, jobs: Iterable[Job]) -> None:
        """Update the leases of jobs."""
        now = trio.current_time()
        for job in jobs:
            self._leases.keep(job, now)
        self._until_check.deadline = min(self._until_check.deadline, self._leases.next_check)

    def renew(self, job_ids: Iterable[str]) -> None:
        """Record that the producers of these jobs have sent events."""
        now = trio.current_time()
        for job_id in job_ids:
            self._leases.renew(job_id, now)

    async def run(self, submit: Callable[..., Awaitable[object]]) -> None:
        """Submit an event for each silent producer, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._leases.next_check) as self._until_check:
                await trio.sleep_forever()
            events: list[Event] = [*self._leases.expired(trio.current_time())]
            for event in events:
                log.info("producer is silent", job_id=event.job_id, lost=isinstance(event, LeaseExpiredEvent))
            await submit(*events)
