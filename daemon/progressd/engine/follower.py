"""The follower: applies the entries of the commit log. It assigns offsets, stores the changes and publishes them.

It also publishes progress, which is in no entry, and stores the newest progress of each job within a second.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from datetime import UTC, datetime
from typing import Final

import structlog
import trio
from msgspec import UNSET
from msgspec.structs import replace
from prometheus_client import Histogram

from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.commit_log.base import Entry, Part, Placement
from progressd.core.batch import BatchStatus, JobBatch, batch_messages, moved
from progressd.core.errors import NotFound, StoreFailed
from progressd.core.eta import Forecasts, KeyedRun
from progressd.core.job import Job
from progressd.core.messages import (
    Completed,
    Error,
    JobCreated,
    JobDeleted,
    JobDeletedData,
    JobStatus,
    PagePreview,
    PagePreviewData,
    Progress,
    StatusChange,
    cursor_text,
)
from progressd.engine.health import StoreHealth
from progressd.engine.leases import LeaseTimer
from progressd.engine.offsets import RESERVE_AHEAD, Offsets
from progressd.engine.previews import Previews
from progressd.engine.registry import Batches, Registry, placed_messages
from progressd.engine.transaction import MAX_LIVE_MESSAGES, NO_MEMORY, Positions, Transaction
from progressd.net.request import AT_ROOT, BasePath
from progressd.store.base import Change, Deletion, Store
from progressd.system.log import log_change

WRITE_BEHIND_INTERVAL: Final = 0.9  # seconds until the newest progress is written; it is at most 1 s late
STEP: Final = 25  # jobs or log lines per pass of the event loop; 25 finished jobs with 64 KiB of options take 10 ms
MAX_BATCH_MESSAGES: Final = 2  # upper bound of messages about a batch per entry

log = structlog.get_logger(__name__)


class Counters:
    """Counters since the start. `jobs`, `batches`: the number that entered each status. `pages`: of completed jobs."""

    def __init__(self) -> None:
        self.events = 0  # number of accepted events
        self.rejected = 0  # number of rejected events
        self.jobs: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self.pages = 0
        self.processed = 0  # number of completed jobs
        self.processing_seconds = 0.0  # total duration of completed jobs
        self.processing = Histogram(
            "superbook_processing_seconds",
            "How long completed jobs took.",
            registry=None,
            buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
        )

    @property
    def mean_processing_seconds(self) -> float:
        """Return the mean duration of completed jobs; 0 if there are none."""
        return self.processing_seconds / self.processed if self.processed else 0.0

    def count(self, changes: Iterable[Change], batches: Iterable[JobBatch]) -> None:
        """Count committed changes. `batches`: the batches with a new status."""
        for change in changes:
            match change.message:
                case JobCreated(data=created):
                    self.jobs[created.status] += 1
                case StatusChange(data=changed):
                    self.jobs[changed.new_status] += 1
                case Completed(data=result):
                    self.pages += result.page_count or 0
                    self.processed += 1
                    self.processing_seconds += result.elapsed_seconds
                    self.processing.observe(result.elapsed_seconds)
        self.batches.update(batch.status for batch in batches)


class Changes:
    """The changes of entries, with their offsets. `batches`: the finished batches to which the entries add jobs."""

    def __init__(
        self,
        registry: Registry,
        batches: Batches,
        finished: dict[str, JobBatch],
        store_id: str,
        base: BasePath,
        first: int,
    ) -> None:
        self._registry = registry
        self._known_batches = batches
        self._finished_batches = finished
        self._store_id = store_id
        self._base = base
        self.next = first
        self.jobs: dict[str, Job] = {}  # changed jobs; finished ones in the order in which they ended
        self.messages: dict[str, list[Envelope]] = {}  # messages by job
        self.published: list[Envelope] = []  # all messages, in order
        self.changes: list[Change] = []
        self.batches: dict[str, JobBatch] = {}  # batches whose counts have changed
        self.runs: list[KeyedRun] = []  # of completed jobs
        self.previews: list[tuple[str, PagePreviewData]] = []  # with the ids of their jobs
        self._counted: dict[str, None] = {}  # batches whose counts the current entry has changed

    def add(self, entry: Entry) -> Placement:
        """Assign offsets to the messages of an entry, except those of void parts."""
        parts = {part.job.id: part for part in entry.parts}
        void = frozenset(part.job.id for part in entry.parts if self._is_void(part))
        positions = {job_id: Positions() for job_id in parts if job_id not in void}
        offsets = list[int]()
        for message in entry.messages:
            job_id = message.job_id
            if job_id in void:
                offsets.append(0)
                continue
            offset = self.next
            self.next += 1
            offsets.append(offset)
            positions[job_id].add(message, offset)
            part = parts[job_id]
            placed = replace(message, cursor=cursor_text(self._store_id, offset))
            shown = placed if isinstance(placed, Progress) else self._base.shown(placed)  # only results have URLs
            envelope = Envelope(offset, shown, part.job.labels)
            self.published.append(envelope)
            if isinstance(placed, PagePreview):  # previews are never stored
                self.previews.append((job_id, placed.data))
                continue
            self.messages.setdefault(job_id, []).append(envelope)
            if not isinstance(placed, Progress):
                self.changes.append(Change(offset, placed))
                if part.job.batch_id is not None:
                    self._count(part.job.batch_id, placed, part)
            self.jobs.pop(job_id, None)  # move the job to the end
            self.jobs[job_id] = part.job
        for job_id, of_job in positions.items():
            self.jobs[job_id] = of_job.in_job(self.jobs[job_id])
        self.runs += [part.run for job_id, part in parts.items() if part.run is not None and job_id not in void]
        self._place_batches()
        return Placement(offsets, self.jobs, void)

    def batches_with_new_status(self) -> list[JobBatch]:
        """Return the batches whose status has changed. Call this before `Batches.keep`."""
        before = self._known_batches.unfinished
        return [
            now for now in self.batches.values() if (then := before(now.id)) is None or then.status is not now.status
        ]

    def _is_void(self, part: Part) -> bool:
        job = self.jobs.get(part.job.id) or self._registry.known(part.job.id)
        return job is not None and job.offset != part.expected

    def _count(self, batch_id: str, change: JobCreated | StatusChange | Completed | Error, part: Part) -> None:
        """Count the new status of a job in its batch. The first job creates the batch, and a later one reopens it."""
        assert change.time is not UNSET
        match change:
            case JobCreated():
                before, after = None, change.data.status
            case StatusChange():
                before, after = change.data.old_status, change.data.new_status
            case _:
                return
        known = self.batches.get(batch_id) or self._known_batches.unfinished(batch_id)
        known = known or self._finished_batches.get(batch_id)
        if known is None:
            known = JobBatch(
                id=batch_id,
                status=BatchStatus.QUEUED,
                name=part.batch_name,
                priority=part.job.priority,
                created_at=change.time,
            )
        as_batch = part.cancelled_with_batch and after is JobStatus.CANCELLED
        self.batches[batch_id] = moved(known, before, after, change.time, as_batch=as_batch)
        self._counted[batch_id] = None

    def _place_batches(self) -> None:
        """Add the messages of each batch whose counts have changed, after the messages of its jobs."""
        for batch_id in self._counted:
            batch, first = self.batches[batch_id], self.next
            self.next += len(batch_messages(batch))
            placed = replace(batch, created_offset=batch.created_offset or first, offset=self.next - 1)
            self.batches[batch_id] = placed
            self.published += placed_messages(placed, self._store_id)
        self._counted.clear()


class Follower:
    """Apply entries and progress: store them, update the jobs in memory, publish the messages, and count.

    `turn`: a task that assigns offsets to progress holds it until the messages are published, so that offsets ascend.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        batches: Batches,
        broadcaster: Broadcaster,
        health: StoreHealth,
        forecasts: Forecasts | None = None,
        base: BasePath = AT_ROOT,
        *,
        reserve_ahead: int = RESERVE_AHEAD,
        write_behind_interval: float = WRITE_BEHIND_INTERVAL,
    ) -> None:
        self.health = health
        self.counters = Counters()
        self.previews = Previews()
        self.leases = LeaseTimer(registry)
        self.forecasts = forecasts or Forecasts()
        self.offsets = Offsets(store, reserve_ahead)
        self.turn = trio.Lock()
        self._store = store
        self._registry = registry
        self._batches = batches
        self._broadcaster = broadcaster
        self._base = base
        self._unsaved: dict[str, Job] = {}  # the newest progress of each job, if the store does not contain it yet
        self._due = trio.Event()  # set if `run` must write
        self._write_behind_interval = write_behind_interval

    async def apply(self, entries: Sequence[Entry]) -> list[Placement]:
        """Apply entries: assign offsets, store the changes in one commit, and publish them.

        Raises StoreFailed; then nothing has changed. Waits while the channel of a topic is full.
        """
        finished = await self._finished_batches(entries)
        count = sum(len(entry.messages) + MAX_BATCH_MESSAGES * len(entry.parts) for entry in entries)
        changes = Changes(
            self._registry, self._batches, finished, self._store.id, self._base, await self.offsets.open(count)
        )
        try:
            try:
                placements = [changes.add(entry) for entry in entries]
            except MemoryError as error:
                raise StoreFailed(NO_MEMORY) from error
            await self._commit(changes)
            await self._acquire_turn()
            try:
                await self._publish(changes)
                self.offsets.close(changes.next)
            finally:
                self.turn.release()
        except BaseException:
            self.offsets.close(changes.next)  # no offset is assigned twice
            raise
        for number, change in enumerate(changes.changes, 1):
            log_change(change.message)
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()  # let other tasks run
        return placements

    async def delete(self, job: Job) -> None:
        """Delete a finished job, and notify its watchers. Raises NotFound, StoreFailed."""
        offset = await self.offsets.open(1)
        try:
            message = JobDeleted(
                job.id,
                JobDeletedData(job.status, job.labels),
                cursor_text(self._store.id, offset),
                datetime.now(UTC),
                job.batch_id or UNSET,
            )
            deletion = Deletion(offset, message)
            stored = (await self._store.jobs([job.id])).get(job.id)
            same = (
                stored is not None and stored.created_offset == job.created_offset
            )  # a later job may have the same id
            if not same or not await self._store.delete([job.id], deletion):
                raise NotFound(f"no job {job.id}")
            async with self.turn:
                self._registry.forget([job.id], offset)
                self.previews.forget(job.id)
                await self._broadcaster.publish(Envelope(offset, message, job.labels))
                self.offsets.close(offset + 1)
        except BaseException:
            self.offsets.close(offset + 1)
            raise
        log.info("job deleted", job_id=job.id)

    async def take_turn(self, events: Sized) -> None:
        """Take the turn, with enough offsets for the progress of these events. Raises StoreFailed."""
        while True:
            await self._acquire_turn()
            count = MAX_LIVE_MESSAGES * len(events)
            if self.offsets.available(count):
                return
            self.turn.release()
            await self.offsets.wait_available(count)

    async def _acquire_turn(self) -> None:
        try:
            self.turn.acquire_nowait()  # unlike `acquire`, this is no checkpoint
        except trio.WouldBlock:
            await self.turn.acquire()

    async def publish_progress(self, transaction: Transaction) -> None:
        """Publish progress in order, and store it later. The caller holds the turn."""
        if transaction.jobs:
            for job in transaction.jobs.values():
                self._registry.keep(job, transaction.messages[job.id])
            self._unsaved.update(transaction.jobs)
            self._due.set()
        if transaction.previews:
            self.previews.keep(transaction.previews)
        for envelope in transaction.published:
            await self._broadcaster.publish(envelope)

    async def reserve(self) -> None:
        """Reserve an offset, so that a store that rejects changes is detected as soon as the daemon runs."""
        try:
            await self.offsets.wait_available(1)
        except StoreFailed as error:
            self.failed(error)

    def failed(self, error: StoreFailed) -> None:
        """Record that a change could not be stored, and retry the store even if no further change arrives."""
        self.health.failed(error)
        self._due.set()

    async def run(self) -> None:
        """Store the newest progress in the background, until cancelled. No event waits for this."""
        while True:
            await self._due.wait()
            await trio.sleep(self._write_behind_interval)  # collects further progress
            self._due = trio.Event()
            with trio.CancelScope(shield=True):
                await self.flush()

    async def flush(self) -> None:
        """Store all progress now. Never raises."""
        try:
            await self._commit()
        except StoreFailed as error:
            log.error("cannot write progress", error=str(error))
            self.failed(error)

    async def _publish(self, changes: Changes) -> None:
        """Update the jobs in memory, and publish the messages in order. Waits while the channel of a topic is full."""
        for number, job in enumerate(changes.jobs.values(), 1):
            self._registry.keep(job, changes.messages[job.id])
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()  # let other tasks run
        self.counters.count(changes.changes, changes.batches_with_new_status())
        jobs = changes.jobs.values()
        if finished := [job for job in jobs if job.status.finished]:
            self.forecasts.finish(finished, changes.runs)
        if leased := [job for job in jobs if job.lease_seconds is not None]:
            self.leases.begin(leased, trio.current_time())
        for batch in changes.batches.values():
            self._batches.keep(batch)
        if changes.previews:
            self.previews.keep(changes.previews)
        for envelope in changes.published:
            await self._broadcaster.publish(envelope)

    async def _finished_batches(self, entries: Iterable[Entry]) -> dict[str, JobBatch]:
        """Return the finished batches to which a job is added, as when the files of a batch arrive one by one."""
        ids = {
            part.job.batch_id
            for entry in entries
            for part in entry.parts
            if part.job.batch_id is not None and self._batches.unfinished(part.job.batch_id) is None
        }
        return dict(await self._batches.find_all(ids)) if ids else {}

    async def _commit(self, changes: Changes | None = None) -> None:
        """Write changes and the newest progress of all jobs. Commits are in the order of the calls."""
        unsaved, self._unsaved = self._unsaved, {}
        undecided_from = self.health.undecided_from
        try:
            if changes is not None:
                jobs = {**unsaved, **changes.jobs}.values()
                with self.health.commit_durations.time():
                    await self._store.commit(jobs, changes.changes, changes.batches.values(), changes.runs)
            elif unsaved:
                await self._store.commit(unsaved.values(), ())
            elif self.health.failure is not None:
                await self.offsets.probe()
        except StoreFailed as error:
            if changes is not None and changes.changes and error.undecided and self.health.undecided_from is None:
                self.health.undecided_from = changes.changes[0].offset
            unfinished = self._registry.unfinished
            again = {job_id: unfinished[job_id] for job_id in unsaved if job_id in unfinished}
            self._unsaved = {**again, **self._unsaved}
            raise
        if changes is not None:
            for job_id in changes.jobs:
                self._unsaved.pop(job_id, None)  # a failed earlier commit may have put their progress back
        if self.health.undecided_from == undecided_from:  # otherwise a later commit has set it
            self.health.undecided_from = None
        self.health.recovered()
