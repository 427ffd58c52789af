"""The engine as one client sees it. A key bound to labels and a token for one topic may see only some jobs.

Jobs and batches that a client may not see do not exist for it. Callers need not check the client's permissions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from progressd.auth.authenticator import Identity
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.core.batch import JobBatch
from progressd.core.errors import NotFound, OutOfScope
from progressd.core.events import Event, RegisterEvent, SubmitEvent
from progressd.core.job import Job, MaySee, sees_all
from progressd.core.messages import ALL_JOBS, BatchMessage, JobStatus
from progressd.engine.attention import Attention
from progressd.engine.commands import Outcome
from progressd.engine.history import History
from progressd.engine.ingest import EventSink, Ingest
from progressd.engine.log_reader import LogReaders
from progressd.engine.registry import Batches, Registry
from progressd.store.base import EVERY_JOB, Filter, Page, Paging, Sort, Store


class Engine(NamedTuple):
    """The parts of the engine that serve clients."""

    store: Store
    registry: Registry
    batches: Batches
    history: History
    broadcaster: Broadcaster
    ingest: Ingest
    logs: LogReaders
    attention: Attention


class ClientView(EventSink):
    """The jobs, batches and topics that a client may see. `labels`: the labels that all these jobs have."""

    def __init__(self, engine: Engine, identity: Identity) -> None:
        self.labels = identity.labels
        self.store_id = engine.ingest.store_id
        self.limiter = engine.ingest.limiter
        self._engine = engine
        self._identity = identity
        self._may_see: MaySee = identity.may_see if identity.bound else sees_all

    @property
    def message_filter(self) -> Callable[[Envelope], bool] | None:
        """Return the filter for live and replayed messages; None if the client may see all messages of its topics."""
        return partial(may_see_message, self._identity) if self._identity.bound_within_topics else None

    async def job(self, job_id: str) -> Job:
        """Return a job. Raises NotFound."""
        job = await self._engine.registry.get(job_id)
        if not self._may_see(job):
            raise NotFound(f"no job {job_id}")
        return job

    def shown(self, job: Job) -> Job:
        """Return the job as clients see it. See Attention."""
        return self._engine.attention.shown(job)

    async def find_job(self, job_id: str) -> Job | None:
        """Return a job; None if it does not exist."""
        job = (await self._engine.registry.find([job_id])).get(job_id)
        return job if job is not None and self._may_see(job) else None

    async def list_jobs(self, which: Filter, limit: int, offset: int) -> tuple[list[Job], int]:
        """Return a page of jobs in their current state, newest first, and the total number. See Store."""
        page = await self.page(which, Paging(limit, offset))
        return page.jobs, page.numbers.total(which.statuses)

    async def page(self, which: Filter, paging: Paging) -> Page:
        """Return a page of jobs in their current state. See Store."""
        if which.attention or paging.counted:
            which = which._replace(troubled=self._engine.attention.offsets())
        if paging.sort is Sort.UPDATED:
            moving = self._engine.registry.unfinished.values()
            paging = paging._replace(unfinished=[(job.offset, job.created_offset) for job in moving])
        page = await self._engine.store.page(self._visible(which), paging)
        return page._replace(jobs=await self._all_current(page.jobs))

    async def counts(self, which: Filter = EVERY_JOB) -> Mapping[JobStatus, int]:
        """Return the number of jobs by status, including zeros."""
        return await self._engine.store.counts(self._visible(which))

    def _visible(self, which: Filter) -> Filter:
        """Return the filter for the visible ones among the jobs. Raises OutOfScope with a token for one topic."""
        if not self._identity.may_watch_all:
            raise OutOfScope(f"this token is for {self._identity.topic}")
        return which._replace(labels=(*which.labels, *self.labels.items()))

    async def batch(self, batch_id: str) -> JobBatch:
        """Return a batch. Raises NotFound."""
        batch = await self.find_batch(batch_id)
        if batch is None:
            raise NotFound(f"no batch {batch_id}")
        return batch

    async def find_batch(self, batch_id: str) -> JobBatch | None:
        """Return a batch; None if it does not exist, or if the client may not see all jobs in it."""
        batch = await self._engine.batches.find(batch_id)
        if batch is None or self._may_see is sees_all:
            return batch
        jobs = await self._engine.store.jobs_of_batch(batch_id)
        return batch if all(map(self._may_see, jobs)) else None

    async def jobs_of_batch(self, batch: JobBatch) -> list[Job]:
        """Return the jobs of a batch in their current state, in order of submission."""
        return await self._all_current(await self._engine.store.jobs_of_batch(batch.id))

    async def submit(self, *events: Event) -> list[Outcome]:
        """See EventSink. Events for invisible jobs are rejected like events for unknown jobs. New jobs get `labels`."""
        if self.labels:
            events = tuple(map(self._labelled, events))
        return await self._engine.ingest.submit(*events, may_see=self._may_see)

    async def delete(self, job: Job) -> Job:
        """Delete a finished job but not its files, and notify its watchers. Raises NotFound, StoreFailed."""
        return await self._engine.ingest.delete(job)

    async def require(self, topic: str) -> None:
        """Raise NotFound unless the topic exists; OutOfScope for all jobs with a token for one topic."""
        if topic == ALL_JOBS and not self._identity.may_watch_all:
            raise OutOfScope(f"this token is for {self._identity.topic}")
        if topic not in await self.existing([topic]):
            raise NotFound(f"no {topic.replace(':', ' ')}")

    async def existing(self, topics: Collection[str]) -> set[str]:
        """Return the topics that exist."""
        found = await self._engine.history.existing(topics, self._may_see)
        return found if self._identity.may_watch_all else found - {ALL_JOBS}

    async def _all_current(self, stored: Sequence[Job]) -> list[Job]:
        await self._engine.attention.estimate(stored)
        return list(map(self._current, stored))

    def _current(self, stored: Job) -> Job:
        job = self._engine.registry.known(stored.id)
        return self.shown(job if job is not None and self._may_see(job) else stored)

    def _labelled(self, event: Event) -> Event:
        if isinstance(event, RegisterEvent | SubmitEvent):
            labels = {**event.data.labels, **self.labels}
            return replace(event, data=replace(event.data, labels=labels))
        return event


def may_see_message(identity: Identity, item: Envelope) -> bool:
    """Return whether a watcher may see a message. For a batch, `require` and `existing` have checked all its jobs."""
    return identity.may_see(item) or isinstance(item.message, BatchMessage)
