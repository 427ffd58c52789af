"""Which jobs' producers have been silent for too long: a decision, and no clock. Times are seconds of one clock."""

import heapq
import math
from typing import Final

from progressd.core.events import LeaseEvent, LeaseExpiredEvent, StalledEvent
from progressd.core.job import Job

LOST_AFTER: Final = 3  # leases of silence
MAX_PER_LOOK: Final = 100  # jobs in one go, about a millisecond


class _Lease:
    """One job's: how long it is, when its producer was last heard, and since when the job has been stalled."""

    __slots__ = ("heard", "seconds", "stalled_since")

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds = seconds
        self.heard = now
        self.stalled_since: float | None = None

    @property
    def due(self) -> float:
        """When silence is next to be judged. A stalled job has two leases to come back in, however late the judge."""
        if self.stalled_since is None:
            return self.heard + self.seconds
        return max(self.heard + LOST_AFTER * self.seconds, self.stalled_since + (LOST_AFTER - 1) * self.seconds)


class Leases:
    """The leases of the unfinished jobs that have one. An hour of reports costs a job one look a lease."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._looks: list[tuple[float, str]] = []  # a heap of when to look at which, never later than that is due

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def next_look(self) -> float:
        """When `silent` is to be called at the latest; infinite while there is no lease."""
        return self._looks[0][0] if self._looks else math.inf

    def keep(self, job: Job, now: float) -> None:
        """Take over a job as it is now. The lease of a job that is new here begins."""
        if job.lease_seconds is None or job.pipeline is not None:
            return
        if job.status.finished:
            self._leases.pop(job.id, None)
            if len(self._looks) > 2 * len(self._leases) + 100:  # most are at jobs that have finished
                self._looks = [look for look in self._looks if look[1] in self._leases]
                heapq.heapify(self._looks)
            return
        lease = self._leases.get(job.id)
        if lease is None:
            lease = self._leases[job.id] = _Lease(job.lease_seconds, now)
            heapq.heappush(self._looks, (lease.due, job.id))
        if not job.progress.stalled:
            lease.stalled_since = None
        elif lease.stalled_since is None:
            lease.stalled_since = now

    def heard(self, job_id: str, now: float) -> None:
        """The producer of a job shows that it is there."""
        lease = self._leases.get(job_id)
        if lease is not None:
            lease.heard = now

    def silent(self, now: float) -> list[LeaseEvent]:
        """What is to be said of the jobs whose producers have been silent, once a lease until that has been kept.

        There may be more as long as `next_look` is past.
        """
        events: list[LeaseEvent] = []
        while self._looks and self._looks[0][0] <= now and len(events) < MAX_PER_LOOK:
            _, job_id = heapq.heappop(self._looks)
            lease = self._leases.get(job_id)
            if lease is None:  # the job has finished
                continue
            look = lease.due
            if look <= now:
                events.append(StalledEvent(job_id) if lease.stalled_since is None else LeaseExpiredEvent(job_id))
                look = now + lease.seconds
            heapq.heappush(self._looks, (look, job_id))
        return events
