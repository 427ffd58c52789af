"""Leases: fail jobs whose producers have been silent for too long. Times are seconds of Trio's clock."""

import heapq
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog
import trio

from progressd.core.events import Event, LeaseEvent, LeaseExpiredEvent, StalledEvent
from progressd.core.job import Job

EXPIRES_AFTER: Final = 3  # leases of silence
EXPIRY_BATCH: Final = 100  # jobs in one go, about a millisecond

log = structlog.get_logger(__name__)


class _Lease:
    """The lease of one job: its length, when its producer last sent something, and when the job stalled."""

    __slots__ = ("last_heard", "seconds", "stalled_since")

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds = seconds
        self.last_heard = now
        self.stalled_since: float | None = None

    @property
    def due(self) -> float:
        """When to check next. A stalled job has two more leases from when it stalled, however late the check was."""
        if self.stalled_since is None:
            return self.last_heard + self.seconds
        return max(
            self.last_heard + EXPIRES_AFTER * self.seconds, self.stalled_since + (EXPIRES_AFTER - 1) * self.seconds
        )


class Leases:
    """The leases of unfinished jobs. A job is checked once per lease, however often its producer reports."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._checks: list[tuple[float, str]] = []  # a heap: when to check which job, never later than it is due

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def next_check(self) -> float:
        """When `expired` must be called at the latest; infinite without leases."""
        return self._checks[0][0] if self._checks else math.inf

    def keep(self, job: Job, now: float) -> None:
        """Take over a job as it is now. The lease of a new job begins."""
        if job.lease_seconds is None or job.pipeline is not None:
            return
        if job.status.finished:
            self._leases.pop(job.id, None)
            if len(self._checks) > 2 * len(self._leases) + 100:  # most of them are of finished jobs
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
        """Note that the producer of a job has sent something."""
        lease = self._leases.get(job_id)
        if lease is not None:
            lease.last_heard = now

    def expired(self, now: float) -> list[LeaseEvent]:
        """Return events for jobs whose producers are silent: the first is repeated once per lease until it is stored.

        There may be more as long as `next_check` is in the past.
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
    """Runs the leases on Trio's clock, in one task for all jobs."""

    def __init__(self) -> None:
        self._leases = Leases()
        self._until_check = trio.CancelScope()

    def __bool__(self) -> bool:
        return bool(self._leases)

    def keep(self, jobs: Iterable[Job]) -> None:
        """Take over jobs as they are now."""
        now = trio.current_time()
        for job in jobs:
            self._leases.keep(job, now)
        self._until_check.deadline = min(self._until_check.deadline, self._leases.next_check)

    def renew(self, job_ids: Iterable[str]) -> None:
        """Note that the producers of these jobs have sent something."""
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
