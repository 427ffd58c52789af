"""The registry: all unfinished jobs in memory, with their messages for new watchers; finished jobs from the store.

Only ingest changes the registry, after a change is durable. Only the newest finished jobs are kept in memory, because
there can be millions of finished jobs.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from heapq import heappop, heappush, nsmallest
from typing import Final

import msgspec
import trio
from msgspec import UNSET
from msgspec.structs import replace

from progressd.broadcast.envelope import Envelope
from progressd.core.batch import JobBatch, batch_messages
from progressd.core.errors import NotFound
from progressd.core.job import Job
from progressd.core.messages import Cursor, JobStatus, Progress
from progressd.store.base import Store

MAX_FINISHED: Final = 1000  # finished jobs in memory: most requests for a finished job arrive soon after its end
MAX_FINISHED_BYTES: Final = 32 * 1024 * 1024  # estimated bytes of memory

MAX_MOVED: Final = 500  # jobs; their newest progress is added to the recent messages together, in 0.7 ms
BLOCK_BITS: Final = 9  # a block contains the messages of 512 offsets

_encode = msgspec.json.Encoder().encode


class Recent:
    """Messages in memory by offset. The cost to add, remove or find a message does not depend on their number."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, Envelope]] = {}
        self._numbers: list[int] = []  # block numbers, ascending

    def add(self, item: Envelope) -> None:
        """Add a message."""
        number = item.offset >> BLOCK_BITS
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = {}
            insort(self._numbers, number)
        block[item.offset] = item

    def remove(self, item: Envelope) -> None:
        """Remove a message that was added."""
        number = item.offset >> BLOCK_BITS
        block = self._blocks[number]
        del block[item.offset]
        if not block:
            del self._blocks[number]
            del self._numbers[bisect_left(self._numbers, number)]

    def between(self, after: int, upto: int, limit: int) -> list[Envelope]:
        """Return the first `limit` messages with after < offset ≤ upto, in order."""
        found = list[Envelope]()
        for place in range(bisect_left(self._numbers, after >> BLOCK_BITS), len(self._numbers)):
            block = self._blocks[self._numbers[place]]
            offsets = sorted(block)
            wanted = offsets[bisect_right(offsets, after) : bisect_right(offsets, upto)]
            found += [block[offset] for offset in wanted[: limit - len(found)]]
            if len(found) == limit or offsets[-1] > upto:
                break
        return found


class RunQueue:
    """Queued jobs in the order in which they start.

    Owners of jobs with the same priority alternate: in turn, each owner with a waiting job starts one. A job that must
    not start, such as a cancelled one, stays in the queue until `take` finds it. `add` and `take` cost O(log n).
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

    def order(self, current: Callable[[str], Job | None], limit: int) -> list[Job]:
        """Return the next `limit` jobs in the order of their start, assuming that no job is added."""
        found = list[Job]()
        for rank in sorted(self._owners, reverse=True):
            waiting = [iter(nsmallest(limit, jobs)) for jobs in self._owners[rank].values()]
            while waiting and len(found) < limit:
                jobs = waiting.pop(0)
                for created_offset, job_id in jobs:
                    job = current(job_id)
                    if job is not None and job.created_offset == created_offset:
                        found.append(job)
                        waiting.append(jobs)
                        break
        return found


class JobMessages:
    """The messages of one job: every state change, and the newest progress. `placed`: the progress in Recent."""

    __slots__ = ("changes", "placed", "progress")

    def __init__(self, changes: Iterable[Envelope] = ()) -> None:
        self.changes = list(changes)
        self.progress: Envelope | None = None
        self.placed: Envelope | None = None

    @property
    def messages(self) -> list[Envelope]:
        """Return all messages, in any order."""
        return [*self.changes, self.progress] if self.progress is not None else self.changes

    def between(self, after: int, upto: int) -> list[Envelope]:
        """Return the messages with after < offset ≤ upto, in order."""
        return in_order(item for item in self.messages if after < item.offset <= upto)


class Registry:
    """The current jobs by id."""

    def __init__(self, store: Store, max_finished: int = MAX_FINISHED) -> None:
        self.max_finished = max_finished
        self.unfinished: dict[str, Job] = {}  # oldest first
        self.last_heard: dict[str, float] = {}  # Trio's time of the last event, by unfinished job with a lease
        self.forgotten = 0  # the largest offset of a finished job that is no longer in memory
        self._recent = Recent()  # the messages of all jobs in memory, without the progress of `_moved`
        self._moved: dict[JobMessages, None] = {}  # most progress is replaced before a watcher asks for it
        self._store = store
        self._finished: OrderedDict[str, Job] = OrderedDict()  # in the order in which they ended
        self._sizes: dict[str, int] = {}  # sizes of finished jobs, in bytes
        self._size = 0  # total of `_sizes`
        self._messages: dict[str, JobMessages] = {}
        self._ends: dict[str, trio.Event] = {}
        self._run_queue = RunQueue()
        self._queued = trio.Event()

    async def load(self) -> None:
        """Read the unfinished jobs from the store."""
        self.forgotten = upto = self._store.first_offset - 1
        messages = list[tuple[JobMessages, Envelope]]()
        for job in await self._store.unfinished():
            self.unfinished[job.id] = job
            job_messages = self._messages[job.id] = JobMessages()
            self._queue(job)
            if (progress := newest_progress(job, self._store.id)) is not None:
                messages.append((job_messages, progress))
        for change in await self._store.changes_of_unfinished(upto):
            job = self.unfinished[change.message.job_id]
            messages.append((self._messages[job.id], Envelope(*change, job.labels)))
        for job_messages, envelope in sorted(messages, key=lambda message: message[1].offset):
            self._add_messages(job_messages, [envelope])

    @property
    def recent(self) -> Recent:
        """Return the messages of all jobs in memory."""
        self._place_moved()
        return self._recent

    def known(self, job_id: str) -> Job | None:
        """Return the job if it is in memory. Every unfinished job is in memory."""
        return self.unfinished.get(job_id) or self._finished.get(job_id)

    def messages_of(self, job_id: str) -> JobMessages | None:
        """Return the messages of a job; None if the job is not in memory."""
        return self._messages.get(job_id)

    def unfinished_at(self, job_id: str, offset: int) -> bool:
        """Return whether the job was unfinished at an offset or is newer. The offset must be above `forgotten`."""
        return job_id in self.unfinished or (job_id in self._finished and self._finished[job_id].offset > offset)

    async def get(self, job_id: str) -> Job:
        """Return the job. Raises NotFound."""
        job = self.known(job_id) or (await self._store.jobs([job_id])).get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id}")
        return job

    async def find(self, ids: Collection[str]) -> Mapping[str, Job]:
        """Return the jobs that exist."""
        found = {job_id: job for job_id in ids if (job := self.known(job_id)) is not None}
        missing = [job_id for job_id in ids if job_id not in found]
        return {**found, **await self._store.jobs(missing)} if missing else found

    def keep(self, job: Job, messages: Iterable[Envelope] = ()) -> None:
        """Store the current state of a job, and its new messages."""
        job_messages = self._messages.get(job.id)
        if job_messages is None:
            job_messages = self._messages[job.id] = JobMessages()
        self._add_messages(job_messages, messages)
        if not job.status.finished:
            before = self.unfinished.get(job.id)
            self.unfinished[job.id] = job
            if job.status is JobStatus.QUEUED and not job.progress_offset and job_messages.progress is not None:
                job_messages.progress = None  # that of an earlier attempt is obsolete
                self._moved[job_messages] = None
            if before is None or before.status is not job.status:
                self._queue(job)
        elif job.id not in self._finished:
            self._finish(job)

    def _add_messages(self, job_messages: JobMessages, messages: Iterable[Envelope]) -> None:
        progress: Envelope | None = None  # the newest
        for envelope in messages:
            if isinstance(envelope.message, Progress):
                progress = envelope
            else:
                job_messages.changes.append(envelope)
                self._recent.add(envelope)
        if progress is not None:
            job_messages.progress = progress
            self._moved[job_messages] = None
            if len(self._moved) > MAX_MOVED:
                self._place_moved()

    def _place_moved(self) -> None:
        for job_messages in self._moved:
            if job_messages.placed is not None:
                self._recent.remove(job_messages.placed)
            if job_messages.progress is not None:
                self._recent.add(job_messages.progress)
            job_messages.placed = job_messages.progress
        self._moved.clear()

    def _finish(self, job: Job) -> None:
        self.unfinished.pop(job.id, None)
        self.last_heard.pop(job.id, None)
        self._finished[job.id] = job
        self._sizes[job.id] = size = _memory_size(job)
        self._size += size
        while len(self._finished) > self.max_finished or self._size > MAX_FINISHED_BYTES:
            self._forget(next(iter(self._finished)))
        if (end := self._ends.pop(job.id, None)) is not None:
            end.set()

    def _forget(self, job_id: str) -> None:
        job = self._finished.pop(job_id, None)
        if job is not None:
            job_messages = self._messages.pop(job_id)
            job_messages.progress = None
            self._moved[job_messages] = None
            for envelope in job_messages.changes:
                self._recent.remove(envelope)
            self._size -= self._sizes.pop(job_id)
            self.forgotten = max(self.forgotten, job.offset)

    def forget(self, ids: Collection[str], upto: int = 0) -> None:
        """Drop deleted jobs. `upto`: the offset of the deletion message, which only the store contains."""
        for job_id in ids:
            self._forget(job_id)
        self.forgotten = max(self.forgotten, upto)

    async def wait_finished(self, job_id: str) -> None:
        """Wait until a job has finished."""
        if job_id in self.unfinished:
            await self._ends.setdefault(job_id, trio.Event()).wait()

    async def next_queued(self) -> Job:
        """Wait for a job that the runner must start, and remove it from the queue."""
        while (job := self._run_queue.take(self._queued_job)) is None:
            await self._queued.wait()
        return job

    def queued(self, limit: int) -> list[Job]:
        """Return the first `limit` jobs of the runner's queue, in the order in which they start."""
        return self._run_queue.order(self._queued_job, limit)

    def _queued_job(self, job_id: str) -> Job | None:
        job = self.unfinished.get(job_id)
        return job if job is not None and job.status is JobStatus.QUEUED else None

    def _queue(self, job: Job) -> None:
        if job.status is JobStatus.QUEUED and job.pipeline is not None:
            self._run_queue.add(job)
            self._queued.set()
            self._queued = trio.Event()


class Batches:
    """The current batches by id."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unfinished: dict[str, JobBatch] = {}

    async def load(self) -> None:
        """Read the unfinished batches from the store."""
        self._unfinished = {batch.id: batch for batch in await self._store.unfinished_batches()}

    def unfinished(self, batch_id: str) -> JobBatch | None:
        """Return the batch; None if it has finished or does not exist."""
        return self._unfinished.get(batch_id)

    async def find(self, batch_id: str) -> JobBatch | None:
        """Return the batch; None if it does not exist."""
        return (await self.find_all([batch_id])).get(batch_id)

    async def find_all(self, ids: Collection[str]) -> Mapping[str, JobBatch]:
        """Return the batches that exist, with at most one query."""
        found = {batch_id: batch for batch_id in ids if (batch := self._unfinished.get(batch_id)) is not None}
        missing = [batch_id for batch_id in ids if batch_id not in found]
        return {**found, **await self._store.batches(missing)} if missing else found

    async def get(self, batch_id: str) -> JobBatch:
        """Return the batch. Raises NotFound."""
        batch = await self.find(batch_id)
        if batch is None:
            raise NotFound(f"no batch {batch_id}")
        return batch

    def keep(self, batch: JobBatch) -> None:
        """Store the current state of a batch."""
        if batch.status.finished:
            self._unfinished.pop(batch.id, None)
        else:
            self._unfinished[batch.id] = batch


def _memory_size(job: Job) -> int:
    """Estimate the memory of a job and its messages, in bytes. Many small values in the options need the most."""
    text = _encode(job)
    return 4096 + 4 * len(text) + 100 * text.count(b",")


def in_order(items: Iterable[Envelope]) -> list[Envelope]:
    """Return messages in the order of their offsets."""
    return sorted(items, key=lambda item: item.offset)


def newest_progress(job: Job, store_id: str) -> Envelope | None:
    """Return the message with the newest progress of a job; None if the job has no progress."""
    if not job.progress_offset:
        return None
    cursor = str(Cursor(store_id, job.progress_offset))
    progress = Progress(job.id, job.progress, cursor, job.progress_at or UNSET, job.batch_id or UNSET)
    return Envelope(job.progress_offset, progress, job.labels)


def placed_messages(batch: JobBatch, store_id: str) -> list[Envelope]:
    """Return the messages about the current state of the batch, with their offsets."""
    messages = batch_messages(batch)
    offsets = range(batch.offset - len(messages) + 1, batch.offset + 1)
    return [
        Envelope(offset, replace(message, cursor=str(Cursor(store_id, offset)), time=batch.moved_at or UNSET))
        for offset, message in zip(offsets, messages, strict=True)
    ]
