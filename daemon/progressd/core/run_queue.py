"""The queue of the runner: jobs by priority, then one job of each owner in turn, then by age."""

from collections.abc import Callable
from heapq import heappop, heappush

from progressd.core.job import Job


class RunQueue:
    """Queued jobs in the order in which they start.

    While an owner waits, at most one job of each other owner with the same priority starts. A job that leaves the
    queue otherwise, such as a cancelled one, stays in it until `take` finds it. Adding costs O(log n), and so does
    taking a job.
    """

    def __init__(self) -> None:
        self._owners: dict[int, dict[str | None, list[tuple[int, str]]]] = {}  # heaps of jobs, by rank and owner

    def add(self, job: Job) -> None:
        """Add a job. An owner without a queued job joins at the end of the round."""
        owners = self._owners.setdefault(job.priority.rank, {})
        heappush(owners.setdefault(job.owner, []), (job.created_offset, job.id))

    def take(self, current: Callable[[str], Job | None]) -> Job | None:
        """Remove the next job and return it, or return None. `current` returns a job by its id if it is queued."""
        for rank in sorted(self._owners, reverse=True):
            owners = self._owners[rank]
            while owners:
                owner = next(iter(owners))
                jobs = owners.pop(owner)
                while jobs:
                    created_offset, job_id = heappop(jobs)
                    job = current(job_id)
                    if job is not None and job.created_offset == created_offset:
                        if jobs:
                            owners[owner] = jobs
                        return job
            del self._owners[rank]
        return None
