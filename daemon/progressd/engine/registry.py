"""The registry: every unfinished job in memory with all that a new watcher needs of it, and the rest from the store.

Only ingest changes it, after a change is durable. It never holds all finished jobs: there can be millions.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec
import trio
from msgspec import UNSET

from progressd.broadcast.envelope import Envelope
from progressd.core.cursor import Cursor
from progressd.core.errors import NotFound
from progressd.core.job import Job
from progressd.core.messages import Progress
from progressd.core.run_queue import RunQueue
from progressd.core.status import JobStatus
from progressd.engine.recent import Recent
from progressd.store.base import Store

MAX_FINISHED: Final = 1000  # finished jobs kept in memory, since just after its end a job is asked for most
MAX_FINISHED_BYTES: Final = 32 * 1024 * 1024  # of memory that they may take, about

_encode = msgspec.json.Encoder().encode


class JobLog:
    """What a job's watchers have been sent: every state change, and the newest progress."""

    __slots__ = ("changes", "progress")

    def __init__(self, changes: Iterable[Envelope] = ()) -> None:
        self.changes = list(changes)
        self.progress: Envelope | None = None

    @property
    def messages(self) -> list[Envelope]:
        """All of it, not in order."""
        return [*self.changes, self.progress] if self.progress is not None else self.changes

    def between(self, after: int, upto: int) -> list[Envelope]:
        """The part with after < offset ≤ upto, in order."""
        return in_order(item for item in self.messages if after < item.offset <= upto)


class Registry:
    """Jobs as they are now, by id."""

    def __init__(self, store: Store) -> None:
        self.unfinished: dict[str, Job] = {}  # oldest first
        self.forgotten = 0  # the largest offset of a finished job that is no longer in memory
        self.recent = Recent()  # the messages of all jobs in memory
        self._store = store
        self._finished: OrderedDict[str, Job] = OrderedDict()  # in the order of their ends
        self._weights: dict[str, int] = {}  # of finished jobs
        self._weight = 0  # of all of them
        self._trails: dict[str, JobLog] = {}
        self._ends: dict[str, trio.Event] = {}
        self._run_queue = RunQueue()
        self._queued = trio.Event()

    async def load(self) -> None:
        """Read the unfinished jobs from the store."""
        self.forgotten = upto = self._store.first_offset - 1
        messages = list[tuple[JobLog, Envelope]]()
        for job in await self._store.unfinished():
            self.unfinished[job.id] = job
            trail = self._trails[job.id] = JobLog()
            self._queue(job)
            if (progress := newest_progress(job, self._store.id)) is not None:
                messages.append((trail, progress))
        for change in await self._store.changes_of_unfinished(upto):
            job = self.unfinished[change.message.job_id]
            messages.append((self._trails[job.id], Envelope(*change, job.labels)))
        for trail, published in sorted(messages, key=lambda message: message[1].offset):
            self._remember(trail, published)

    def known(self, job_id: str) -> Job | None:
        """The job if it is in memory, which every unfinished one is."""
        return self.unfinished.get(job_id) or self._finished.get(job_id)

    def trail(self, job_id: str) -> JobLog | None:
        """Its messages, if the job is in memory."""
        return self._trails.get(job_id)

    def unfinished_at(self, job_id: str, offset: int) -> bool:
        """Return whether the job was unfinished at an offset, or has come since; not for one below `forgotten`."""
        return job_id in self.unfinished or (job_id in self._finished and self._finished[job_id].offset > offset)

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

    def keep(self, job: Job, messages: Iterable[Envelope] = ()) -> None:
        """Take over a job as it is now, and what its watchers are going to be sent."""
        trail = self._trails.get(job.id)
        if trail is None:
            trail = self._trails[job.id] = JobLog()
        for published in messages:
            self._remember(trail, published)
        if not job.status.finished:
            before = self.unfinished.get(job.id)
            self.unfinished[job.id] = job
            if job.status is JobStatus.QUEUED and not job.progress_offset and trail.progress is not None:
                self.recent.remove(trail.progress)  # what an earlier attempt did is void
                trail.progress = None
            if before is None or before.status is not job.status:
                self._queue(job)
        elif job.id not in self._finished:
            self._finish(job)

    def _remember(self, trail: JobLog, published: Envelope) -> None:
        if not isinstance(published.message, Progress):
            trail.changes.append(published)
        else:
            if trail.progress is not None:
                self.recent.remove(trail.progress)
            trail.progress = published
        self.recent.add(published)

    def _finish(self, job: Job) -> None:
        self.unfinished.pop(job.id, None)
        self._finished[job.id] = job
        self._weights[job.id] = weight = _weight(job)
        self._weight += weight
        while len(self._finished) > MAX_FINISHED or self._weight > MAX_FINISHED_BYTES:
            self._forget(next(iter(self._finished)))
        if (end := self._ends.pop(job.id, None)) is not None:
            end.set()

    def _forget(self, job_id: str) -> None:
        job = self._finished.pop(job_id, None)
        if job is not None:
            for published in self._trails.pop(job_id).messages:
                self.recent.remove(published)
            self._weight -= self._weights.pop(job_id)
            self.forgotten = max(self.forgotten, job.offset)

    def forget(self, ids: Collection[str], upto: int = 0) -> None:
        """Drop finished jobs that were deleted. `upto`: the offset of the deletion, which only the store has."""
        for job_id in ids:
            self._forget(job_id)
        self.forgotten = max(self.forgotten, upto)

    async def wait_finished(self, job_id: str) -> None:
        """Wait until an unfinished job has finished, whoever ends it."""
        if job_id in self.unfinished:
            await self._ends.setdefault(job_id, trio.Event()).wait()

    async def next_queued(self) -> Job:
        """Wait for a job that the runner has to start, and remove it from the queue until it is queued again."""
        while (job := self._run_queue.take(self._queued_job)) is None:
            await self._queued.wait()
        return job

    def _queued_job(self, job_id: str) -> Job | None:
        job = self.unfinished.get(job_id)
        return job if job is not None and job.status is JobStatus.QUEUED else None

    def _queue(self, job: Job) -> None:
        if job.status is JobStatus.QUEUED and job.pipeline is not None:
            self._run_queue.add(job)
            self._queued.set()
            self._queued = trio.Event()


def _weight(job: Job) -> int:
    """About how many bytes of memory a job takes with its messages; many small values in its options take the most."""
    text = _encode(job)
    return 4096 + 4 * len(text) + 100 * text.count(b",")


def in_order(items: Iterable[Envelope]) -> list[Envelope]:
    """Messages by their places in the stream."""
    return sorted(items, key=lambda item: item.offset)


def newest_progress(job: Job, store_id: str) -> Envelope | None:
    """The message with a job's newest progress, if it has had any."""
    if not job.progress_offset:
        return None
    cursor = str(Cursor(store_id, job.progress_offset))
    progress = Progress(job.id, job.progress, cursor, job.progress_at or UNSET, job.batch_id or UNSET)
    return Envelope(job.progress_offset, progress, job.labels)
