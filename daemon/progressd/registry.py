"""The registry: every unfinished job in memory, and the finished ones from the store.

Only ingest changes it, after a change is durable. It never holds all finished jobs: there can be millions.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Final

import trio

from progressd.core.errors import NotFound
from progressd.core.job import Job
from progressd.core.status import JobStatus
from progressd.store.base import Store

REMEMBERED: Final = 1000  # finished jobs kept in memory, since just after its end a job is asked for most


class Registry:
    """Jobs as they are now, by id."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.unfinished: dict[str, Job] = {}  # oldest first
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._ends: dict[str, trio.Event] = {}
        self._queued = trio.Event()

    async def load(self) -> None:
        """Read the unfinished jobs from the store."""
        self.unfinished = {job.id: job for job in await self._store.unfinished()}

    def known(self, job_id: str) -> Job | None:
        """The job if it is in memory, which every unfinished one is."""
        return self.unfinished.get(job_id) or self._finished.get(job_id)

    async def get(self, job_id: str) -> Job:
        """The job. Raises NotFound."""
        job = self.known(job_id) or (await self._store.jobs([job_id])).get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id}")
        return job

    async def find(self, ids: Collection[str]) -> Mapping[str, Job]:
        """Those of the jobs that exist."""
        found = {job_id: job for job_id in ids if (job := self.known(job_id)) is not None}
        missing = [job_id for job_id in ids if job_id not in found]
        return {**found, **await self._store.jobs(missing)} if missing else found

    def keep(self, job: Job) -> None:
        """Take over a job as it is now."""
        if not job.status.finished:
            self.unfinished[job.id] = job
            if job.status is JobStatus.QUEUED:
                self._queued.set()
            return
        self.unfinished.pop(job.id, None)
        self._finished[job.id] = job
        if len(self._finished) > REMEMBERED:
            self._finished.popitem(last=False)
        if (end := self._ends.pop(job.id, None)) is not None:
            end.set()

    def forget(self, ids: Collection[str]) -> None:
        """Drop finished jobs that were deleted."""
        for job_id in ids:
            self._finished.pop(job_id, None)

    async def wait_finished(self, job_id: str) -> None:
        """Wait until an unfinished job has finished, whoever ends it."""
        if job_id in self.unfinished:
            await self._ends.setdefault(job_id, trio.Event()).wait()

    async def wait_queued(self) -> None:
        """Wait until a job is queued; a job that was queued before the call may count."""
        await self._queued.wait()
        self._queued = trio.Event()
