"""The history: past messages, for new and reconnecting watchers.

The messages of jobs that are in memory are also kept in memory, already encoded. Messages of other jobs are read from
the store.
"""

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Final
from weakref import WeakValueDictionary

import trio

from progressd.broadcast.envelope import NO_LABELS, Envelope
from progressd.broadcast.subscription import Page, PastMessages
from progressd.core.errors import InvalidInput
from progressd.core.job import Job, MaySee, sees_all
from progressd.core.messages import ALL_JOBS, BatchMessage, Cursor, JobCreated, JobDeleted, batch_topic, job_topic
from progressd.engine.health import StoreHealth
from progressd.engine.registry import Batches, JobMessages, Registry, in_order, newest_progress, placed_messages
from progressd.net.request import AT_ROOT, BasePath
from progressd.store.base import Change, Deletion, Store

PAGE: Final = 500  # messages read at once, about 0.1 ms in memory
SNAPSHOT_MAX_AGE: Final = 1000  # offsets; new watchers share a snapshot of at most this age
MAX_SNAPSHOTS: Final = 8  # a snapshot of 20,000 jobs takes up to 30 MB while a slow watcher reads it


class History:
    """The history of a broadcaster with a store."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        batches: Batches,
        health: StoreHealth,
        base: BasePath = AT_ROOT,
        *,
        page_size: int = PAGE,
        snapshot_max_age: int = SNAPSHOT_MAX_AGE,
        max_snapshots: int = MAX_SNAPSHOTS,
    ) -> None:
        self._health = health
        self._store = store
        self._registry = registry
        self._batches = batches
        self._base = base
        self._page_size = page_size
        self._snapshot_max_age = snapshot_max_age
        self._max_snapshots = max_snapshots
        # Of all jobs. Weak: they exist while watchers read them.
        self._snapshots: MutableMapping[int, SharedPage] = WeakValueDictionary()  # by number, oldest first
        self._snapshots_taken = 0
        self._pages: MutableMapping[int, SharedPage] = WeakValueDictionary()  # by the offset before the first message
        self._snapshot_lock, self._page_lock = trio.Lock(), trio.Lock()

    async def existing(self, topics: Collection[str], may_see: MaySee = sees_all) -> set[str]:
        """Return the topics that exist for a watcher. `may_see`: whether the watcher may see a job.

        A batch exists for a watcher that may see all of its jobs. The call needs two queries, plus one per batch.
        """
        jobs = await self._registry.find(_ids(topics, job_topic("")))
        batches = await self._batches.find_all(_ids(topics, batch_topic("")))
        found = {job_topic(job_id) for job_id, job in jobs.items() if may_see(job)}
        for batch_id in batches:
            if may_see is sees_all or all(map(may_see, await self._store.jobs_of_batch(batch_id))):
                found.add(batch_topic(batch_id))
        return found | ({ALL_JOBS} & set(topics))

    async def over(self, topic: str, after: int) -> bool:
        """Return whether the topic has ended and has no message after an offset. Raises NotFound."""
        if topic.startswith(job_topic("")):
            job = await self._registry.get(topic.removeprefix(job_topic("")))
            return job.status.finished and job.offset <= after
        if topic.startswith(batch_topic("")):
            batch = await self._batches.get(topic.removeprefix(batch_topic("")))
            return batch.status.finished and batch.offset <= after
        return False

    def cursor(self, offset: int) -> str:
        """Return the cursor for an offset, but never after an undecided change, which may become visible later."""
        undecided_from = self._health.undecided_from
        if undecided_from is not None:
            offset = min(offset, undecided_from - 1)
        return str(Cursor(self._store.id, offset))

    def offset(self, since: str, newest: int) -> int | None:
        """Return the offset of the cursor; None if the messages after it are unknown."""
        try:
            cursor = Cursor.parse(since)
        except InvalidInput:
            return None
        known = cursor.store == self._store.id and self._store.oldest_cursor <= cursor.offset <= newest
        return cursor.offset if known else None

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """See History in `progressd.broadcast.subscription`."""
        if topic.startswith(job_topic("")):
            return await self._of_job(topic.removeprefix(job_topic("")), after or 0, upto)
        if topic.startswith(batch_topic("")):
            return await self._of_batch(topic.removeprefix(batch_topic("")), after or 0, upto)
        if after is None:
            page = await self._snapshot(upto)
        elif after < upto:
            page = await self._page_after(after, upto)
        else:
            return Page(PastMessages())
        return Page(page, page.upto if page.upto < upto else None)

    async def _snapshot(self, upto: int) -> "SharedPage":
        """Return the messages of all jobs that were unfinished at `upto` or shortly before.

        While watchers still read too many older snapshots, the oldest is dropped, and its watchers are disconnected.
        """
        async with self._snapshot_lock:
            for snapshot in self._snapshots.values():
                if upto - self._snapshot_max_age <= snapshot.upto <= upto:
                    return snapshot
            snapshot = await self._take_snapshot(upto)
            in_use = list(self._snapshots.items())
            for number, oldest in in_use[: max(0, len(in_use) + 1 - self._max_snapshots)]:
                del self._snapshots[number]
                oldest.drop()
            self._snapshots_taken += 1
            self._snapshots[self._snapshots_taken] = snapshot
            return snapshot

    async def _page_after(self, after: int, upto: int) -> "SharedPage":
        """Return the first messages after an offset."""
        async with self._page_lock:
            page = self._pages.get(after)
            if page is None or page.upto > upto:
                page = self._pages[after] = await self._read_page(after, upto)
            return page

    async def _read_page(self, after: int, upto: int) -> "SharedPage":
        if self._registry.forgotten > after:
            return await self._stored(after, upto)
        items = self._registry.recent.between(after, upto, self._page_size)
        return SharedPage(items[-1].offset if len(items) == self._page_size else upto, items)

    async def _take_snapshot(self, upto: int) -> "SharedPage":
        """Return the messages of all jobs that were unfinished at `upto`."""
        snapshot, after = SharedPage(upto), 0
        while self._registry.forgotten <= upto:
            items = self._registry.recent.between(after, upto, self._page_size)
            snapshot += [item for item in items if self._in_snapshot(item, upto)]
            if len(items) < self._page_size:
                return snapshot
            after = items[-1].offset
            await trio.lowlevel.checkpoint()  # let other tasks run
        return await self._stored_snapshot(upto)

    def _in_snapshot(self, item: Envelope, upto: int) -> bool:
        message = item.message
        if isinstance(message, BatchMessage | JobDeleted):
            return False
        return self._registry.unfinished_at(message.job_id, upto)

    async def _of_job(self, job_id: str, after: int, upto: int) -> Page:
        job = await self._registry.get(job_id)
        job_messages = await self._job_messages(job, after, upto)
        items = [item for item in job_messages.between(after, upto) if not isinstance(item.message, JobCreated)]
        return Page(PastMessages(items), over=job.status.finished and job.offset <= upto)

    async def _of_batch(self, batch_id: str, after: int, upto: int) -> Page:
        batch = await self._batches.get(batch_id)
        items = placed_messages(batch, self._store.id)
        for job in await self._store.jobs_of_batch(batch_id):
            items += (await self._job_messages(job, after, upto)).between(after, upto)
        if after:
            items += await self._deletions_in_batch(batch_id, after, upto)
        items = [item for item in items if after < item.offset <= upto]
        return Page(PastMessages(in_order(items)), over=batch.status.finished and batch.offset <= upto)

    async def _job_messages(self, job: Job, after: int, upto: int) -> JobMessages:
        job_messages = self._registry.messages_of(job.id)
        if job_messages is None:
            job_messages = JobMessages()
            job_messages.progress = newest_progress(job, self._store.id)
            while changes := await self._store.changes(after, upto, self._page_size, job.id):
                job_messages.changes += [self._envelope(change, job.labels) for change in changes]
                after = changes[-1].offset
        return job_messages

    async def _stored(self, after: int, upto: int) -> "SharedPage":
        """Read a page from memory and the store, because the registry has dropped jobs that finished after `after`."""
        # Read the messages in memory first, because newer progress may replace them.
        recent = self._registry.recent.between(after, upto, self._page_size)
        end = recent[-1].offset if len(recent) == self._page_size else upto
        changes = await self._store.changes(after, end, self._page_size)
        if len(changes) == self._page_size:
            end = changes[-1].offset
        moved = await self._store.moved(after, end, self._page_size)
        if len(moved) == self._page_size:
            end = moved[-1].progress_offset
        deletions = await self._store.deletions(after, end, self._page_size)
        if len(deletions) == self._page_size:
            end = deletions[-1].offset
        moved = [job for job in moved if self._registry.messages_of(job.id) is None]
        items = {item.offset: item for item in await self._with_labels(changes)}
        items |= {item.offset: item for job in moved if (item := newest_progress(job, self._store.id)) is not None}
        items |= {item.offset: item for item in map(_deleted, deletions)}
        items |= {item.offset: item for item in recent}
        found = [item for item in items.values() if item.offset <= end]
        return SharedPage(end, in_order(found))

    async def _deletions_in_batch(self, batch_id: str, after: int, upto: int) -> list[Envelope]:
        items = list[Envelope]()
        while found := await self._store.deletions(after, upto, self._page_size):
            items += [_deleted(deletion) for deletion in found if deletion.message.batch_id == batch_id]
            after = found[-1].offset
        return items

    async def _stored_snapshot(self, upto: int) -> "SharedPage":
        """Read the snapshot from the store, because the registry has dropped jobs that finished after `upto`."""
        messages_of_jobs = {job_id: self._registry.messages_of(job_id) for job_id in self._registry.unfinished}
        # Read the progress in memory first, because newer progress may replace it.
        progress = [job_messages.progress for job_messages in messages_of_jobs.values() if job_messages is not None]
        changes = await self._store.changes_of_unfinished(upto)
        jobs = await self._store.jobs({change.message.job_id for change in changes} - messages_of_jobs.keys())
        progress += [newest_progress(job, self._store.id) for job in jobs.values()]
        items = list[Envelope]()
        for place in range(0, len(changes), self._page_size):
            items += await self._with_labels(changes[place : place + self._page_size])
            await trio.lowlevel.checkpoint()  # let other tasks run between the pages
        items += [item for item in progress if item is not None and item.offset <= upto]
        return SharedPage(upto, in_order(items))

    async def _with_labels(self, changes: Sequence[Change]) -> list[Envelope]:
        """Return the changes as messages. If a job cannot be read, its message has no labels."""
        ids = {change.message.job_id for change in changes}
        jobs = {job_id: job for job_id in ids if (job := self._registry.known(job_id)) is not None}
        if missing := ids - jobs.keys():
            jobs.update(await self._store.readable_jobs(missing))
        labels = {job.id: job.labels for job in jobs.values()}
        return [self._envelope(change, labels.get(change.message.job_id, NO_LABELS)) for change in changes]

    def _envelope(self, change: Change, labels: Mapping[str, str]) -> Envelope:
        return Envelope(change.offset, self._base.shown(change.message), labels)


class SharedPage(PastMessages):
    """Messages of all jobs up to an offset, in order: a page after another offset, or a snapshot.

    Watchers that connect at the same time share them, until the last of them has received them. They are never wrong,
    because newer messages are on the next pages.
    """

    def __init__(self, upto: int, items: Iterable[Envelope] = ()) -> None:
        super().__init__(items)
        self.upto = upto


def _deleted(deletion: Deletion) -> Envelope:
    return Envelope(deletion.offset, deletion.message, deletion.message.data.labels)


def _ids(topics: Collection[str], prefix: str) -> list[str]:
    return [topic.removeprefix(prefix) for topic in topics if topic.startswith(prefix)]
