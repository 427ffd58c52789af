"""Views of the engine for a key bound to labels or a token for one topic. Invisible jobs and batches do not exist.

Each class wraps a component of the engine and shows the visible jobs. Callers need not check the client's rights.
"""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from progressd.auth.authenticator import Identity
from progressd.broadcast.broadcaster import Broadcaster
from progressd.core.batch import JobBatch
from progressd.core.errors import CorruptRecord, NotFound, OutOfScope, StoreFailed
from progressd.core.events import Event, RegisterEvent, SubmitEvent
from progressd.core.job import Job
from progressd.core.messages import ALL_JOBS, JobStatus
from progressd.engine.history import History
from progressd.engine.ingest import EventSink, Ingest, Outcome
from progressd.engine.log_reader import LogReaders
from progressd.engine.registry import Batches, Registry
from progressd.store.base import Filter, Store


class RegistryView:
    """The registry, restricted to the jobs that a client may see."""

    def __init__(self, registry: Registry, identity: Identity) -> None:
        self._registry = registry
        self._identity = identity

    def known(self, job_id: str) -> Job | None:
        """See Registry."""
        job = self._registry.known(job_id)
        return job if job is not None and self._identity.may_see(job) else None

    async def get(self, job_id: str) -> Job:
        """See Registry."""
        job = await self._registry.get(job_id)
        if not self._identity.may_see(job):
            raise NotFound(f"no job {job_id}")
        return job

    async def find(self, ids: Collection[str]) -> Mapping[str, Job]:
        """See Registry."""
        found = await self._registry.find(ids)
        return {job_id: job for job_id, job in found.items() if self._identity.may_see(job)}

    def queue_position(self, job: Job) -> int | None:
        """See Registry. The jobs of other clients count."""
        return self._registry.queue_position(job)


class BatchesView:
    """The batches, restricted to batches whose jobs are all visible to a client."""

    def __init__(self, batches: Batches, store: Store, identity: Identity) -> None:
        self._batches = batches
        self._store = store
        self._identity = identity

    async def find(self, batch_id: str) -> JobBatch | None:
        """See Batches."""
        batch = await self._batches.find(batch_id)
        if batch is None or not all(map(self._identity.may_see, await self._store.jobs_of_batch(batch_id))):
            return None
        return batch

    async def get(self, batch_id: str) -> JobBatch:
        """See Batches."""
        batch = await self.find(batch_id)
        if batch is None:
            raise NotFound(f"no batch {batch_id}")
        return batch


class StoreView:
    """The store, with lists and counts restricted to the jobs with a client's labels."""

    def __init__(self, store: Store, identity: Identity) -> None:
        self.id: Final = store.id
        self._store = store
        self._identity = identity

    @property
    def damage(self) -> StoreFailed | None:
        """See Store."""
        return self._store.damage

    @property
    def unreadable(self) -> CorruptRecord | None:
        """See Store."""
        return self._store.unreadable

    async def jobs_of_batch(self, batch_id: str) -> list[Job]:
        """See Store. The caller has found the batch, so the client may see all of its jobs."""
        return await self._store.jobs_of_batch(batch_id)

    async def list_jobs(self, which: Filter, limit: int, offset: int) -> tuple[list[Job], int]:
        """See Store."""
        if not self._identity.may_watch_all:
            raise OutOfScope(f"this token is for {self._identity.topic}")
        labels = (*which.labels, *self._identity.labels.items())
        return await self._store.list_jobs(which._replace(labels=labels), limit, offset)

    async def counts(self) -> Mapping[JobStatus, int]:
        """See Store."""
        return {status: (await self.list_jobs(Filter([status]), 1, 0))[1] for status in JobStatus}


class IngestView(EventSink):
    """Ingest for a client: events change only jobs that the client may see, and new jobs get the client's labels."""

    def __init__(self, ingest: Ingest, identity: Identity) -> None:
        self.store_id = ingest.store_id
        self.limiter = ingest.limiter
        self.health = ingest.health
        self._ingest = ingest
        self._identity = identity

    async def submit(self, *events: Event) -> list[Outcome]:
        """See Ingest. Events for jobs that the client may not see are rejected like events for unknown jobs."""
        return await self._ingest.submit(*map(self._labelled, events), may_see=self._identity.may_see)

    async def delete(self, job: Job) -> Job:
        """See Ingest."""
        if not self._identity.may_see(job):
            raise NotFound(f"no job {job.id}")
        return await self._ingest.delete(job)

    def _labelled(self, event: Event) -> Event:
        if isinstance(event, RegisterEvent | SubmitEvent):
            labels = {**event.data.labels, **self._identity.labels}
            return replace(event, data=replace(event.data, labels=labels))
        return event


class HistoryView:
    """The history, restricted to the topics that a client may watch."""

    def __init__(self, history: History, identity: Identity) -> None:
        self._history = history
        self._identity = identity

    def cursor(self, offset: int) -> str:
        """See History."""
        return self._history.cursor(offset)

    def offset(self, since: str, newest: int) -> int | None:
        """See History."""
        return self._history.offset(since, newest)

    async def over(self, topic: str, after: int) -> bool:
        """See History."""
        return await self._history.over(topic, after)

    async def require(self, topic: str) -> None:
        """Raise NotFound unless the topic exists for the client; OutOfScope for all jobs with a token for one topic."""
        if topic == ALL_JOBS and not self._identity.may_watch_all:
            raise OutOfScope(f"this token is for {self._identity.topic}")
        if topic not in await self.existing([topic]):
            raise NotFound(f"no {topic.replace(':', ' ')}")

    async def existing(self, topics: Collection[str]) -> set[str]:
        """See History."""
        found = await self._history.existing(topics, self._identity.may_see)
        return found if self._identity.may_watch_all else found - {ALL_JOBS}


class View(NamedTuple):
    """The engine as one client sees it. `labels`: the labels that every visible job has."""

    labels: Mapping[str, str]
    store: Store | StoreView
    registry: Registry | RegistryView
    batches: Batches | BatchesView
    history: History | HistoryView
    ingest: Ingest | IngestView


class Views:
    """Make the view for each client. An unrestricted client receives the unwrapped components."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        batches: Batches,
        history: History,
        broadcaster: Broadcaster,
        ingest: Ingest,
        logs: LogReaders,
    ) -> None:
        self.broadcaster = broadcaster
        self.logs = logs
        self._all = View({}, store, registry, batches, history, ingest)
        self._store = store
        self._registry = registry
        self._batches = batches
        self._history = history
        self._ingest = ingest

    def of(self, identity: Identity) -> View:
        """Return the view of a client."""
        if not identity.bound:
            return self._all
        return View(
            identity.labels,
            StoreView(self._store, identity),
            RegistryView(self._registry, identity),
            BatchesView(self._batches, self._store, identity),
            HistoryView(self._history, identity),
            IngestView(self._ingest, identity),
        )
