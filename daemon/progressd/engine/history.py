"""The history: what was, for a watcher who comes later or comes back.

Of the jobs in memory it is there, encoded already for the watchers before; of the others it comes from the store.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import trio

from progressd.broadcast.envelope import NO_LABELS, Envelope
from progressd.broadcast.subscription import Page
from progressd.core.cursor import Cursor
from progressd.core.errors import InvalidInput, NotFound
from progressd.core.job import Job, MaySee, sees_all
from progressd.core.messages import ALL_JOBS, BatchMessage, JobCreated, JobDeleted, batch_topic, job_topic
from progressd.engine.batches import Batches, placed_messages
from progressd.engine.registry import JobLog, Registry, in_order, newest_progress
from progressd.engine.store_health import StoreHealth
from progressd.net.base_path import AT_ROOT, BasePath
from progressd.store.base import Change, Store

PAGE: Final = 500  # messages read at once, in memory about 0.1 ms
SHARED_FOR: Final = 1000  # offsets for which new watchers get the same snapshot, and what has come since


class History:
    """See `broadcast.subscription.History`."""

    def __init__(
        self, store: Store, registry: Registry, batches: Batches, health: StoreHealth, base: BasePath = AT_ROOT
    ) -> None:
        self._health = health
        self._store = store
        self._registry = registry
        self._batches = batches
        self._base = base
        self._taking = trio.Lock()
        self._taken: Callable[[], Snapshot | None] = lambda: None  # the last snapshot, while somebody holds it

    async def require(self, topic: str) -> None:
        """Raise NotFound unless the topic exists."""
        if topic not in await self.existing([topic]):
            raise NotFound(f"no {topic.replace(':', ' ')}")

    async def existing(self, topics: Collection[str], may_see: MaySee = sees_all) -> set[str]:
        """Return those of the topics that exist, for a watcher that may see some jobs.

        A batch is there for a watcher that may see all of its jobs. All topics that do not exist cost two queries.
        """
        jobs = await self._registry.find(_ids(topics, job_topic("")))
        batches = await self._batches.find_all(_ids(topics, batch_topic("")))
        found = {job_topic(job_id) for job_id, job in jobs.items() if may_see(job)}
        for batch_id in batches:
            if may_see is sees_all or all(map(may_see, await self._store.jobs_of_batch(batch_id))):
                found.add(batch_topic(batch_id))
        return found | ({ALL_JOBS} & set(topics))

    async def over(self, topic: str, after: int) -> bool:
        """Whether nothing comes on the topic any more after that offset. Raises NotFound."""
        if topic.startswith(job_topic("")):
            job = await self._registry.get(topic.removeprefix(job_topic("")))
            return job.status.finished and job.offset <= after
        if topic.startswith(batch_topic("")):
            batch = await self._batches.get(topic.removeprefix(batch_topic("")))
            return batch.status.finished and batch.offset <= after
        return False

    def cursor(self, offset: int) -> str:
        """The cursor a client gets for an offset; from before what is undecided, which may show later."""
        undecided_from = self._health.undecided_from
        if undecided_from is not None:
            offset = min(offset, undecided_from - 1)
        return str(Cursor(self._store.id, offset))

    def offset(self, since: str, newest: int) -> int | None:
        """The offset to resume from, or None if nobody can tell what came after that cursor."""
        try:
            cursor = Cursor.parse(since)
        except InvalidInput:
            return None
        known = cursor.store == self._store.id and self._store.oldest_cursor <= cursor.offset <= newest
        return cursor.offset if known else None

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """See `broadcast.subscription.History`."""
        if topic.startswith(job_topic("")):
            return await self._of_job(topic.removeprefix(job_topic("")), after or 0, upto)
        if topic.startswith(batch_topic("")):
            return await self._of_batch(topic.removeprefix(batch_topic("")), after or 0, upto)
        if after is None:
            snapshot = await self._snapshot(upto)
            return Page(snapshot, snapshot.upto if snapshot.upto < upto else None)
        if self._registry.forgotten > after:
            return await self._stored(after, upto)
        items = self._registry.recent.between(after, upto, PAGE)
        return Page(items, items[-1].offset if len(items) == PAGE else None)

    async def _snapshot(self, upto: int) -> "Snapshot":
        """Return the messages of all unfinished jobs, as they were at `upto` or shortly before.

        Watchers that connect together share one snapshot. It lives until the last of them has sent it.
        """
        async with self._taking:
            snapshot = self._taken()
            if snapshot is None or not upto - SHARED_FOR <= snapshot.upto <= upto:
                snapshot = await self._take_snapshot(upto)
                self._taken = weakref.ref(snapshot)
            return snapshot

    async def _take_snapshot(self, upto: int) -> "Snapshot":
        snapshot, walked = Snapshot(upto), 0
        while self._registry.forgotten <= upto:
            items = self._registry.recent.between(walked, upto, PAGE)
            snapshot += [item for item in items if self._in_snapshot(item, upto)]
            if len(items) < PAGE:
                return snapshot
            walked = items[-1].offset
            await trio.lowlevel.checkpoint()  # let other tasks run between two parts
        return await self._stored_snapshot(upto)

    def _in_snapshot(self, item: Envelope, upto: int) -> bool:
        message = item.message
        if isinstance(message, BatchMessage | JobDeleted):
            return False
        return self._registry.unfinished_at(message.job_id, upto)

    async def _of_job(self, job_id: str, after: int, upto: int) -> Page:
        job = await self._registry.get(job_id)
        trail = await self._trail(job, after, upto)
        items = [item for item in trail.between(after, upto) if not isinstance(item.message, JobCreated)]
        return Page(items, over=job.status.finished and job.offset <= upto)

    async def _of_batch(self, batch_id: str, after: int, upto: int) -> Page:
        batch = await self._batches.get(batch_id)
        items = placed_messages(batch, self._store.id)
        for job in await self._store.jobs_of_batch(batch_id):
            items += (await self._trail(job, after, upto)).between(after, upto)
        if after:
            items += await self._deletions(after, upto, batch_id)
        items = [item for item in items if after < item.offset <= upto]
        return Page(in_order(items), over=batch.status.finished and batch.offset <= upto)

    async def _trail(self, job: Job, after: int, upto: int) -> JobLog:
        trail = self._registry.trail(job.id)
        if trail is None:
            trail = JobLog()
            trail.progress = newest_progress(job, self._store.id)
            while changes := await self._store.changes(after, upto, PAGE, job.id):
                trail.changes += [self._published(change, job.labels) for change in changes]
                after = changes[-1].offset
        return trail

    async def _stored(self, after: int, upto: int) -> Page:
        """Read a page in memory and in the store, since the registry has forgotten some jobs that finished later."""
        recent = self._registry.recent.between(after, upto, PAGE)  # before any progress moves on
        end = recent[-1].offset if len(recent) == PAGE else upto
        changes = await self._store.changes(after, end, PAGE)
        if len(changes) == PAGE:
            end = changes[-1].offset
        moved = [job for job in await self._store.moved(after, end) if self._registry.trail(job.id) is None]
        items = {item.offset: item for item in await self._with_labels(changes)}
        items |= {item.offset: item for job in moved if (item := newest_progress(job, self._store.id)) is not None}
        items |= {item.offset: item for item in await self._deletions(after, end)}
        items |= {item.offset: item for item in recent if item.offset <= end}
        return Page(in_order(items.values()), None if end == upto else end)

    async def _deletions(self, after: int, upto: int, batch_id: str | None = None) -> list[Envelope]:
        """Return the deletions of jobs, all or those of a batch."""
        found = await self._store.deletions(after, upto)
        return [
            Envelope(offset, message, message.data.labels)
            for offset, message in found
            if batch_id is None or message.batch_id == batch_id
        ]

    async def _stored_snapshot(self, upto: int) -> "Snapshot":
        """Read the snapshot in the store, since the registry has forgotten some jobs while it was taken."""
        trails = {job_id: self._registry.trail(job_id) for job_id in self._registry.unfinished}
        progress = [trail.progress for trail in trails.values() if trail is not None]  # before it moves on
        changes = await self._store.changes_of_unfinished(upto)
        jobs = await self._store.jobs({change.message.job_id for change in changes} - trails.keys())
        progress += [newest_progress(job, self._store.id) for job in jobs.values()]
        items = await self._with_labels(changes)
        items += [item for item in progress if item is not None and item.offset <= upto]
        return Snapshot(upto, in_order(items))

    async def _with_labels(self, changes: Sequence[Change]) -> list[Envelope]:
        """Return the changes as messages. One whose job cannot be read has no labels: keys bound to some miss it."""
        ids = {change.message.job_id for change in changes}
        jobs = {job_id: job for job_id in ids if (job := self._registry.known(job_id)) is not None}
        jobs.update(await self._store.readable_jobs(ids - jobs.keys()))
        labels = {job.id: job.labels for job in jobs.values()}
        return [self._published(change, labels.get(change.message.job_id, NO_LABELS)) for change in changes]

    def _published(self, change: Change, labels: Mapping[str, str]) -> Envelope:
        return Envelope(change.offset, self._base.shown(change.message), labels)


class Snapshot(list[Envelope]):
    """The messages of the jobs that were unfinished at an offset, in order."""

    def __init__(self, upto: int, items: Iterable[Envelope] = ()) -> None:
        super().__init__(items)
        self.upto = upto


def _ids(topics: Collection[str], prefix: str) -> list[str]:
    return [topic.removeprefix(prefix) for topic in topics if topic.startswith(prefix)]
