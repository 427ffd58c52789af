"""The history: what was, for a watcher who comes later or comes back.

It puts together the state changes from the store and the newest progress, which of unfinished jobs is in the registry.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import UNSET

from progressd.broadcast.published import Published
from progressd.broadcast.subscription import Page
from progressd.core.cursor import Cursor
from progressd.core.errors import InvalidInput
from progressd.core.job import Job
from progressd.core.messages import ALL_JOBS, JobCreated, Progress, job_topic
from progressd.registry import Registry
from progressd.store.base import Change, Store

PAGE: Final = 500  # state changes read at once


class History:
    """See `broadcast.subscription.History`."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def cursor(self, offset: int) -> str:
        """The cursor a client gets for an offset."""
        return str(Cursor(self._store.id, offset))

    async def offset(self, since: str, newest: int) -> int | None:
        """The offset to resume from, or None if nobody can tell what came after that cursor."""
        try:
            cursor = Cursor.parse(since)
        except InvalidInput:
            return None
        if cursor.store != self._store.id or cursor.offset > newest:
            return None
        return cursor.offset if cursor.offset >= await self._store.oldest_cursor() else None

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """See `broadcast.subscription.History`."""
        unfinished = dict(
            self._registry.unfinished
        )  # before the store is asked: what finishes meanwhile is in the store
        if topic == ALL_JOBS:
            return await self._page_of_all(unfinished, after, upto)
        return await self._page_of_one(topic, after, upto)

    async def _page_of_all(self, unfinished: dict[str, Job], after: int | None, upto: int) -> Page:
        if after is None:
            changes = await self._store.changes_of_unfinished(upto)
            ids = {change.message.job_id for change in changes}
            ended = await self._registry.find(ids - unfinished.keys())
            moved = [*(unfinished[job_id] for job_id in ids & unfinished.keys()), *ended.values()]
            return Page(self._merged(changes, moved, 0, upto))
        changes = await self._store.changes(after, upto, PAGE)
        end = changes[-1].offset if len(changes) == PAGE else upto
        stored = [job for job in await self._store.moved(after, end) if job.id not in unfinished]
        items = self._merged(changes, [*unfinished.values(), *stored], after, end)
        return Page(items, None if end == upto else end)

    async def _page_of_one(self, topic: str, after: int | None, upto: int) -> Page:
        job = await self._registry.get(topic.removeprefix(job_topic("")))
        changes = await self._store.changes(after or 0, upto, PAGE, job.id)
        changes = [change for change in changes if not isinstance(change.message, JobCreated)]
        return Page(self._merged(changes, [job], after or 0, upto), over=job.status.finished and job.offset <= upto)

    def _merged(self, changes: Iterable[Change], moved: Iterable[Job], after: int, upto: int) -> list[Published]:
        items = [Published(*change) for change in changes]
        for job in moved:
            if after < job.progress_offset <= upto:
                message = Progress(job.id, job.progress, self.cursor(job.progress_offset), job.progress_at or UNSET)
                items.append(Published(job.progress_offset, message))
        items.sort(key=lambda item: item.offset)
        return items
