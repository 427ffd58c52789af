"""What a key bound to labels, or a token for one topic, has to do with: for it, no other job and batch exists.

Each class stands for a part of the daemon and lets through what concerns such a one, so that whoever works with the
part need not know who asks.
"""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from progressd.auth.identity import Identity
from progressd.broadcast.broadcaster import Broadcaster
from progressd.core.batch import JobBatch
from progressd.core.errors import CorruptRecord, NotFound, OutOfScope, StoreFailed
from progressd.core.events import Event, RegisterEvent, SubmitEvent
from progressd.core.job import Job
from progressd.core.messages import ALL_JOBS
from progressd.core.status import JobStatus
from progressd.engine.batches import Batches
from progressd.engine.history import History
from progressd.engine.ingest import EventSink, Ingest, Outcome
from progressd.engine.registry import Registry
from progressd.store.base import Filter, Store


class ScopedRegistry:
    """The registry, with the jobs that `who` sees."""

    def __init__(self, registry: Registry, who: Identity) -> None:
        self._registry = registry
        self._who = who

    def known(self, job_id: str) -> Job | None:
        """See Registry."""
        job = self._registry.known(job_id)
        return job if job is not None and self._who.may_see(job) else None

    async def get(self, job_id: str) -> Job:
        """See Registry."""
        job = await self._registry.get(job_id)
        if not self._who.may_see(job):
            raise NotFound(f"no job {job_id}")
        return job

    async def find(self, ids: Collection[str]) -> Mapping[str, Job]:
        """See Registry."""
        found = await self._registry.find(ids)
        return {job_id: job for job_id, job in found.items() if self._who.may_see(job)}


class ScopedBatches:
    """The batches all of whose jobs `who` sees."""

    def __init__(self, batches: Batches, store: Store, who: Identity) -> None:
        self._batches = batches
        self._store = store
        self._who = who

    async def find(self, batch_id: str) -> JobBatch | None:
        """See Batches."""
        batch = await self._batches.find(batch_id)
        if batch is None or not all(map(self._who.may_see, await self._store.jobs_of_batch(batch_id))):
            return None
        return batch

    async def get(self, batch_id: str) -> JobBatch:
        """See Batches."""
        batch = await self.find(batch_id)
        if batch is None:
            raise NotFound(f"no batch {batch_id}")
        return batch


class ScopedStore:
    """The store, with lists and counts of the jobs that have the labels of `who`."""

    def __init__(self, store: Store, who: Identity) -> None:
        self.id: Final = store.id
        self.jobs_of_batch = store.jobs_of_batch  # of a batch that was found, and so is one of theirs
        self._store = store
        self._who = who

    @property
    def damage(self) -> StoreFailed | None:
        """See Store."""
        return self._store.damage

    @property
    def unreadable(self) -> CorruptRecord | None:
        """See Store."""
        return self._store.unreadable

    async def list_jobs(self, which: Filter, limit: int, offset: int) -> tuple[list[Job], int]:
        """See Store."""
        if not self._who.may_watch_all:
            raise OutOfScope(f"this token is for {self._who.topic}")
        labels = (*which.labels, *self._who.labels.items())
        return await self._store.list_jobs(which._replace(labels=labels), limit, offset)

    async def counts(self) -> Mapping[JobStatus, int]:
        """See Store."""
        return {status: (await self.list_jobs(Filter([status]), 1, 0))[1] for status in JobStatus}


class ScopedIngest(EventSink):
    """Ingest for `who`: their events are about their jobs, and the jobs that they make have their labels."""

    def __init__(self, ingest: Ingest, who: Identity) -> None:
        self.store_id = ingest.store_id
        self.health = ingest.health
        self._ingest = ingest
        self._who = who

    async def submit(self, *events: Event) -> list[Outcome]:
        """See Ingest. What is about the job of somebody else is refused like what is about none."""
        return await self._ingest.submit(*map(self._labelled, events), may_see=self._who.may_see)

    async def delete(self, job: Job) -> Job:
        """See Ingest."""
        if not self._who.may_see(job):
            raise NotFound(f"no job {job.id}")
        return await self._ingest.delete(job)

    def _labelled(self, event: Event) -> Event:
        if isinstance(event, RegisterEvent | SubmitEvent):
            labels = {**event.data.labels, **self._who.labels}
            return replace(event, data=replace(event.data, labels=labels))
        return event


class ScopedHistory:
    """The history, with the topics that `who` may watch."""

    def __init__(self, history: History, who: Identity) -> None:
        self.cursor = history.cursor
        self.offset = history.offset
        self.over = history.over
        self._history = history
        self._who = who

    async def require(self, topic: str) -> None:
        """Raise NotFound unless the topic exists for `who`, OutOfScope for all jobs with a token for one topic."""
        if topic == ALL_JOBS and not self._who.may_watch_all:
            raise OutOfScope(f"this token is for {self._who.topic}")
        if topic not in await self.existing([topic]):
            raise NotFound(f"no {topic.replace(':', ' ')}")

    async def existing(self, topics: Collection[str]) -> set[str]:
        """See History."""
        found = await self._history.existing(topics, self._who.may_see)
        return found if self._who.may_watch_all else found - {ALL_JOBS}


class ScopedServices(NamedTuple):
    """The parts of the daemon, as far as one has to do with them. `labels`: those that a job must have to be seen."""

    labels: Mapping[str, str]
    store: Store | ScopedStore
    registry: Registry | ScopedRegistry
    batches: Batches | ScopedBatches
    history: History | ScopedHistory
    ingest: Ingest | ScopedIngest


class Scopes:
    """Who sees what. It costs whoever sees everything nothing."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        batches: Batches,
        history: History,
        broadcaster: Broadcaster,
        ingest: Ingest,
    ) -> None:
        self.broadcaster = broadcaster
        self._all = ScopedServices({}, store, registry, batches, history, ingest)
        self._store = store
        self._registry = registry
        self._batches = batches
        self._history = history
        self._ingest = ingest

    def of(self, who: Identity) -> ScopedServices:
        """Return what `who` sees."""
        if not who.bound:
            return self._all
        return ScopedServices(
            who.labels,
            ScopedStore(self._store, who),
            ScopedRegistry(self._registry, who),
            ScopedBatches(self._batches, self._store, who),
            ScopedHistory(self._history, who),
            ScopedIngest(self._ingest, who),
        )
