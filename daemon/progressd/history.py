"""The history: what was, for a watcher who comes later or comes back.

Of the jobs in memory it is there, encoded already for the watchers before; of the others it comes from the store.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from progressd.batches import Batches, placed_messages
from progressd.broadcast.published import NO_LABELS, Published
from progressd.broadcast.subscription import Page
from progressd.core.base_path import AT_ROOT, BasePath
from progressd.core.cursor import Cursor
from progressd.core.errors import InvalidInput, NotFound
from progressd.core.job import Job, MaySee, sees_all
from progressd.core.messages import ALL_JOBS, JobCreated, batch_topic, job_topic
from progressd.registry import Registry, Trail, in_order, newest_progress
from progressd.store.base import Change, Store

PAGE: Final = 500  # state changes read at once


class History:
    """See `broadcast.subscription.History`."""

    def __init__(self, store: Store, registry: Registry, batches: Batches, base: BasePath = AT_ROOT) -> None:
        self._store = store
        self._registry = registry
        self._batches = batches
        self._base = base

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
        undecided_from = self._registry.undecided_from
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
        since = upto if after is None else after
        if self._registry.forgotten > since:
            return await self._stored(after, upto)
        trails = map(self._registry.trail, self._registry.unfinished_at(since))
        return Page(in_order(item for trail in trails if trail for item in trail.between(after or 0, upto)))

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
        items = [item for item in items if after < item.offset <= upto]
        return Page(in_order(items), over=batch.status.finished and batch.offset <= upto)

    async def _trail(self, job: Job, after: int, upto: int) -> Trail:
        trail = self._registry.trail(job.id)
        if trail is None:
            trail = Trail()
            trail.progress = newest_progress(job, self._store.id)
            while changes := await self._store.changes(after, upto, PAGE, job.id):
                trail.changes += [self._published(change, job.labels) for change in changes]
                after = changes[-1].offset
        return trail

    async def _stored(self, after: int | None, upto: int) -> Page:
        """When more jobs have finished since than the registry remembers."""
        in_memory = {job_id: self._registry.trail(job_id) for job_id in self._registry.unfinished}
        progress = [trail.progress for trail in in_memory.values() if trail is not None]  # before it moves on
        end = upto
        if after is None:
            changes = await self._store.changes_of_unfinished(upto)
            jobs = await self._store.jobs({change.message.job_id for change in changes} - in_memory.keys())
            moved = list(jobs.values())
        else:
            changes = await self._store.changes(after, upto, PAGE)
            if len(changes) == PAGE:
                end = changes[-1].offset
            moved = [job for job in await self._store.moved(after, end) if job.id not in in_memory]
        progress += [newest_progress(job, self._store.id) for job in moved]
        items = await self._with_labels(changes)
        items += [item for item in progress if item is not None and (after or 0) < item.offset <= end]
        return Page(in_order(items), None if end == upto else end)

    async def _with_labels(self, changes: Sequence[Change]) -> list[Published]:
        """Return the changes as messages. One whose job cannot be read has no labels: keys bound to some miss it."""
        ids = {change.message.job_id for change in changes}
        jobs = {job_id: job for job_id in ids if (job := self._registry.known(job_id)) is not None}
        jobs.update(await self._store.readable_jobs(ids - jobs.keys()))
        labels = {job.id: job.labels for job in jobs.values()}
        return [self._published(change, labels.get(change.message.job_id, NO_LABELS)) for change in changes]

    def _published(self, change: Change, labels: Mapping[str, str]) -> Published:
        return Published(change.offset, self._base.shown(change.message), labels)


def _ids(topics: Collection[str], prefix: str) -> list[str]:
    return [topic.removeprefix(prefix) for topic in topics if topic.startswith(prefix)]
