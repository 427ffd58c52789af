"""The commit log: makes accepted changes durable, in a single order, before they become visible."""

from datetime import UTC, datetime
from typing import Final, Protocol

import structlog
import trio
from prometheus_client import Histogram

from progressd.core.errors import StoreFailed
from progressd.core.job import Job
from progressd.core.messages import Cursor
from progressd.engine.registry import Registry
from progressd.engine.transaction import Transaction, deletion_message
from progressd.store.base import Deletion, Store
from progressd.system.condition import Condition

RESERVE_AHEAD: Final = 100_000  # offsets reserved in the store at a time; a restart skips the unused ones
WRITE_BEHIND_INTERVAL: Final = 0.9  # seconds until the newest progress is written; it is at most 1 s late

log = structlog.get_logger(__name__)


class StoreHealth:
    """The health of the store. `failure`: its last error; None while it accepts changes."""

    def __init__(self) -> None:
        self.failure: StoreFailed | None = None
        self.undecided_from: int | None = None  # first offset whose commit may or may not be on the disk
        self.commit_durations = Histogram(
            "progressd_store_commit_duration_seconds",
            "How long the store took to make a batch of events durable.",
            registry=None,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
        )
        self._changed = Condition()

    def failed(self, failure: StoreFailed) -> None:
        """Record that the store rejected a change."""
        self._set(failure)

    def recovered(self) -> None:
        """Record that the store accepted a change."""
        if self.failure is not None:
            log.info("the database accepts changes again")
            self._set(None)

    async def wait_changed(self, known: StoreFailed | None) -> StoreFailed | None:
        """Return the failure, or None, once it differs from `known`."""
        await self._changed.wait_for(lambda: str(self.failure) != str(known))
        return self.failure

    def _set(self, failure: StoreFailed | None) -> None:
        self.failure = failure
        self._changed.notify()


class CommitLog(Protocol):
    """The commit log, to which ingest appends. If a method raises StoreFailed, the change must not become visible."""

    health: StoreHealth

    async def reserve(self, count: int) -> int:
        """Return the offset of the next message; the next `count` offsets may be assigned. Raises StoreFailed."""

    async def append(self, transaction: Transaction) -> None:
        """Make a transaction durable. If it contains only progress, the newest of each job is written later.

        Raises StoreFailed.
        """

    async def delete(self, job: Job) -> Deletion | None:
        """Delete a finished job. Return None if the job no longer exists. Raises StoreFailed."""

    def failed(self, error: StoreFailed) -> None:
        """Record that a change could not be stored, and retry the store even if no further change arrives."""

    async def run(self) -> None:
        """Write progress in the background, until cancelled."""

    async def flush(self) -> None:
        """Write all progress now. Never raises."""


class Offsets:
    """Assign each offset once, even across a crash: the store has reserved all offsets below `_reserved`."""

    def __init__(self, store: Store, ahead: int) -> None:
        self.next = self._reserved = store.first_offset
        self._store = store
        self._ahead = ahead

    async def reserve(self, count: int) -> int:
        """Reserve the next `count` offsets and return the first."""
        if self.next + count > self._reserved:
            await self._reserve_below(self.next + count + self._ahead)
        return self.next

    async def probe(self) -> None:
        """Reserve one more offset. This tests a write to the store, and has no other effect."""
        await self._reserve_below(self._reserved + 1)

    async def _reserve_below(self, offset: int) -> None:
        await self._store.reserve(offset)
        self._reserved = max(self._reserved, offset)  # ingest and the write-behind may call this at the same time


class LocalCommitLog:
    """A commit log that uses the SQLite store directly: an append is a commit."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        reserve_ahead: int = RESERVE_AHEAD,
        write_behind_interval: float = WRITE_BEHIND_INTERVAL,
    ) -> None:
        self.health = StoreHealth()
        self._store = store
        self._registry = registry
        self._offsets = Offsets(store, reserve_ahead)
        self._unsaved: dict[str, Job] = {}  # the newest progress of each job, if the store does not contain it yet
        self._due = trio.Event()  # set if `run` must write
        self._write_behind_interval = write_behind_interval

    async def reserve(self, count: int) -> int:
        """See CommitLog."""
        return await self._offsets.reserve(count)

    async def append(self, transaction: Transaction) -> None:
        """See CommitLog."""
        self._offsets.next = transaction.offset  # even if the commit fails: no offset is assigned twice
        if transaction.changes:
            await self._commit(transaction)
            return
        if self.health.undecided_from is not None:
            transaction.hide_cursors()
        if transaction.jobs:
            self._unsaved.update(transaction.jobs)
            self._due.set()

    async def delete(self, job: Job) -> Deletion | None:
        """See CommitLog."""
        offset = await self._offsets.reserve(1)
        self._offsets.next = offset + 1
        deletion = Deletion(offset, deletion_message(job, Cursor(self._store.id, offset), datetime.now(UTC)))
        stored = (await self._store.jobs([job.id])).get(job.id)
        if stored is None or stored.created_offset != job.created_offset:  # a later job may have the same id
            return None
        return deletion if await self._store.delete([job.id], deletion) else None

    def failed(self, error: StoreFailed) -> None:
        """See CommitLog."""
        self.health.failed(error)
        self._due.set()

    async def run(self) -> None:
        """See CommitLog. Events are processed while progress is written, so that no event waits for this write."""
        while True:
            await self._due.wait()
            await trio.sleep(self._write_behind_interval)  # collects further progress
            self._due = trio.Event()
            with trio.CancelScope(shield=True):
                await self.flush()

    async def flush(self) -> None:
        """See CommitLog."""
        try:
            await self._commit()
        except StoreFailed as error:
            log.error("cannot write progress", error=str(error))
            self.failed(error)

    async def _commit(self, transaction: Transaction | None = None) -> None:
        """Write a transaction and the newest progress of all jobs. Commits are in the order of the calls."""
        unsaved, self._unsaved = self._unsaved, {}
        undecided_from = self.health.undecided_from
        try:
            if transaction is not None:
                jobs = {**unsaved, **transaction.jobs}.values()
                with self.health.commit_durations.time():
                    await self._store.commit(jobs, transaction.changes, transaction.batches.values(), transaction.runs)
            elif unsaved:
                await self._store.commit(unsaved.values(), ())
            elif self.health.failure is not None:
                await self._offsets.probe()
        except StoreFailed as error:
            if transaction is not None and error.undecided and self.health.undecided_from is None:
                self.health.undecided_from = transaction.changes[0].offset
            unfinished = self._registry.unfinished
            again = {job_id: unfinished[job_id] for job_id in unsaved if job_id in unfinished}
            self._unsaved = {**again, **self._unsaved}
            raise
        if transaction is not None:
            for job_id in transaction.jobs:
                self._unsaved.pop(job_id, None)  # a failed earlier commit may have put their progress back
        if self.health.undecided_from == undecided_from:  # otherwise a later commit has set it
            self.health.undecided_from = None
        self.health.recovered()
