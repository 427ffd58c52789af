"""What a key bound to labels, or a token for one topic, has to do with: for it, no other job and batch exists.

Each class stands for a part of the daemon and lets through what concerns such a one, so that whoever works with the
part need not know who asks.
"""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from progressd.auth.identity import Identity, Scope, decide
from progressd.batches import Batches
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.crowd import Crowd
from progressd.broadcast.outbox import Outbox
from progressd.broadcast.published import Batch, Published
from progressd.broadcast.reader import Reader, ReaderOutbox
from progressd.broadcast.session import Session
from progressd.broadcast.subscription import Page, Subscription
from progressd.core.batch import JobBatch
from progressd.core.errors import NotFound, OutOfScope, StoreFailed, Unreadable
from progressd.core.events import Event, RegisterEvent, SubmitEvent
from progressd.core.job import Job
from progressd.core.messages import ALL_JOBS, BatchMessage, JobDeleted, batch_topic
from progressd.core.status import JobStatus
from progressd.history import History
from progressd.ingest import Ingest
from progressd.registry import Registry
from progressd.store.base import Filter, Store
from progressd.submitting import Outcome, Submitting


class SeenRegistry:
    """The registry, with the jobs that `who` sees."""

    def __init__(self, registry: Registry, who: Identity) -> None:
        self._registry = registry
        self._who = who

    def known(self, job_id: str) -> Job | None:
        """See Registry."""
        job = self._registry.known(job_id)
        return job if job is not None and self._who.sees(job) else None

    async def get(self, job_id: str) -> Job:
        """See Registry."""
        job = await self._registry.get(job_id)
        decide(self._who, Scope.READ if Scope.READ in self._who.scopes else Scope.WRITE, job)
        return job

    async def find(self, ids: Collection[str]) -> Mapping[str, Job]:
        """See Registry."""
        found = await self._registry.find(ids)
        return {job_id: job for job_id, job in found.items() if self._who.sees(job)}


class SeenBatches:
    """The batches all of whose jobs `who` sees."""

    def __init__(self, batches: Batches, store: Store, who: Identity) -> None:
        self._batches = batches
        self._store = store
        self._who = who

    async def find(self, batch_id: str) -> JobBatch | None:
        """See Batches."""
        batch = await self._batches.find(batch_id)
        if batch is None or not all(map(self._who.sees, await self._store.jobs_of_batch(batch_id))):
            return None
        return batch

    async def get(self, batch_id: str) -> JobBatch:
        """See Batches."""
        batch = await self.find(batch_id)
        if batch is None:
            raise NotFound(f"no batch {batch_id}")
        return batch


class SeenStore:
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
    def unreadable(self) -> Unreadable | None:
        """See Store."""
        return self._store.unreadable

    async def list_jobs(self, which: Filter, limit: int, offset: int) -> tuple[list[Job], int]:
        """See Store."""
        if self._who.topic not in (None, ALL_JOBS):
            raise OutOfScope(f"this token is for {self._who.topic}")
        labels = (*which.labels, *self._who.labels.items())
        return await self._store.list_jobs(which._replace(labels=labels), limit, offset)

    async def counts(self) -> Mapping[JobStatus, int]:
        """See Store."""
        return {status: (await self.list_jobs(Filter([status]), 1, 0))[1] for status in JobStatus}


class BoundIngest(Submitting):
    """Ingest for `who`: their events are about their jobs, and the jobs that they make have their labels."""

    def __init__(self, ingest: Ingest, who: Identity) -> None:
        self.store_id = ingest.store_id
        self.failing = ingest.failing
        self._ingest = ingest
        self._who = who

    async def submit(self, *events: Event) -> list[Outcome]:
        """See Ingest. What is about the job of somebody else is refused like what is about none."""
        return await self._ingest.submit(*map(self._labelled, events), sees=self._who.sees)

    async def delete(self, job: Job) -> Job:
        """See Ingest."""
        if not self._who.sees(job):
            raise NotFound(f"no job {job.id}")
        return await self._ingest.delete(job)

    def _labelled(self, event: Event) -> Event:
        if isinstance(event, RegisterEvent | SubmitEvent):
            labels = {**event.data.labels, **self._who.labels}
            return replace(event, data=replace(event.data, labels=labels))
        return event


class SeenHistory:
    """The history, with what was of the jobs that `who` sees; and the same for what comes."""

    def __init__(self, history: History, registry: Registry, batches: SeenBatches, who: Identity) -> None:
        self.cursor = history.cursor
        self.offset = history.offset
        self.over = history.over
        self._history = history
        self._registry = registry
        self._batches = batches
        self._who = who
        self._replayed: set[str] = set()  # the jobs of the last page that it sees

    async def subject(self, topic: str) -> Job | None:
        """See History. Raises OutOfScope for all jobs where only one topic may be watched."""
        subject = await self._history.subject(topic)
        if not await self._may_watch(topic, subject):
            if topic == ALL_JOBS:
                raise OutOfScope(f"this token is for {self._who.topic}")
            raise NotFound(f"no {topic.replace(':', ' ')}")
        return subject

    async def subjects(self, topics: Collection[str]) -> Mapping[str, Job | None]:
        """See History."""
        found = await self._history.subjects(topics)
        return {topic: subject for topic, subject in found.items() if await self._may_watch(topic, subject)}

    async def _may_watch(self, topic: str, subject: Job | None) -> bool:
        if topic.startswith(batch_topic("")):
            return await self._batches.find(topic.removeprefix(batch_topic(""))) is not None
        if subject is not None:
            return self._who.sees(subject)
        return self._who.topic in (None, ALL_JOBS)

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """See `broadcast.subscription.History`."""
        page = await self._history.page(topic, after, upto)
        jobs = {item.message.job_id for item in page.items if not isinstance(item.message, BatchMessage)}
        found = await self._registry.find(jobs)
        self._replayed = {job_id for job_id, job in found.items() if self._who.sees(job)}
        return page._replace(items=[item for item in page.items if self.shows(item)])

    def shows(self, item: Published) -> bool:
        """Whether a message that has just come, or was in the last page, is for `who`."""
        message = item.message
        if isinstance(message, BatchMessage):
            return True  # who may watch the batch sees all of its jobs
        if isinstance(message, JobDeleted):
            return self._who.labels.items() <= message.data.labels.items()
        job = self._registry.known(message.job_id)
        return self._who.sees(job) if job is not None else message.job_id in self._replayed


class Filtered:
    """An outbox that gets only what a history shows."""

    def __init__(self, outbox: Outbox, history: SeenHistory) -> None:
        self._outbox = outbox
        self._shows = history.shows
        self.end = outbox.end
        self.upto = outbox.upto

    def put(self, batch: Batch[Published]) -> None:
        """Pass on what is for its watcher."""
        shown = [item for item in batch.items if self._shows(item)]
        if shown:
            self._outbox.put(batch if len(shown) == len(batch.items) else Batch(shown))

    def follow(self, crowd: Crowd) -> None:
        """Get what is put into the crowd, in order to choose."""
        crowd.add(self)


class SeenBroadcaster:
    """The broadcaster, with the messages that a history shows."""

    def __init__(self, broadcaster: Broadcaster, history: SeenHistory) -> None:
        self._broadcaster = broadcaster
        self._history = history

    @property
    def offset(self) -> int:
        """See Broadcaster."""
        return self._broadcaster.offset

    def join(self, name: str, outbox: Outbox, after: int | None = None) -> Subscription:
        """See Broadcaster."""
        return self._broadcaster.join(name, Filtered(outbox, self._history), after, self._history)

    def read(self, topic: str, outbox: ReaderOutbox, behind: Outbox, after: int | None = None) -> Reader:
        """See Broadcaster."""
        return Reader(outbox, self.join(topic, behind, after))

    def open_session(self, outbox: Outbox) -> Session:
        """See Broadcaster."""
        return self._broadcaster.open_session(Filtered(outbox, self._history), self._history)


class Sight(NamedTuple):
    """The parts of the daemon, as far as one has to do with them."""

    store: Store | SeenStore
    registry: Registry | SeenRegistry
    batches: Batches | SeenBatches
    history: History | SeenHistory
    broadcaster: Broadcaster | SeenBroadcaster
    ingest: Ingest | BoundIngest


class Sights:
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
        self._store = store
        self._registry = registry
        self._batches = batches
        self._history = history
        self._broadcaster = broadcaster
        self._ingest = ingest

    def of(self, who: Identity) -> Sight:
        """What `who` sees."""
        if not who.bound:
            return Sight(self._store, self._registry, self._batches, self._history, self._broadcaster, self._ingest)
        batches = SeenBatches(self._batches, self._store, who)
        history = SeenHistory(self._history, self._registry, batches, who)
        return Sight(
            SeenStore(self._store, who),
            SeenRegistry(self._registry, who),
            batches,
            history,
            SeenBroadcaster(self._broadcaster, history),
            BoundIngest(self._ingest, who),
        )
