"""A subscription: one watcher on one topic, without a seam between what was and what comes.

It is registered first, and notes the newest offset of that moment (its top). What is live and newer than the top is
held back until everything up to the top has been replayed from the store; then it goes out, and from there on the
outbox is one of the topic's crowd. So nothing is missing and nothing comes twice, however the two interleave.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import trio

from progressd.broadcast.envelope import Envelope, FrameBatch
from progressd.broadcast.outbox import Backlog, Outbox
from progressd.core.close_codes import BATCH_FINISHED, JOB_FINISHED, SLOW_CONSUMER
from progressd.core.messages import ALL_JOBS, BatchMessage, JobDeleted, batch_topic, ends_job

REPLAY_BATCH = 128  # messages of a snapshot put into an outbox before it must drain
REPLAY_BYTES = 65536  # and what they may come to, well below an outbox's limit; a longer message goes alone


class Page(NamedTuple):
    """Some of what was, oldest first. `after`: where the next page begins, None when this is the last one.

    A snapshot is one page. It may have been taken a little earlier, and what has come since is on the next ones.
    """

    items: Sequence[Envelope]
    after: int | None = None
    over: bool = False  # the topic has had its last message


class History(Protocol):
    """Where a subscription reads what was."""

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """Messages of a topic with after < offset ≤ upto; after=None: the snapshot, all a new watcher needs to know."""


class EmptyHistory:
    """For a broadcaster without a store: a watcher sees what comes after it."""

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """Nothing."""
        await trio.lowlevel.checkpoint()
        return Page([])


class Replay:
    """What was on a topic, in parts: after < offset ≤ top, or the snapshot at the top where `after` is None.

    `turns` is shared by all pasts of all jobs, which may be long. In each pass of the event loop one of them goes on.
    So a hundred watchers that come back together do not delay other tasks.
    """

    def __init__(self, history: History, topic: str, after: int | None, top: int, turns: trio.Lock) -> None:
        self.over = False  # the topic has had its last message, as far as has been read
        self.newest = 0  # the offset of the last message that has been read
        self.begins = 0  # the offset at which the snapshot was taken
        self.ends = dict[str, int]()  # of jobs whose end or deletion has been read, its offset; not for all jobs
        self._history = history
        self._topic = topic
        self._after = after
        self._top = top
        self._turns = turns
        self._page: Sequence[Envelope] = ()
        self._place = 0  # in the page, of the next message
        self._at_end = False

    async def next(self) -> FrameBatch[Envelope] | None:
        """The next part, oldest first; it may be empty. None when there is no more."""
        if self._topic == ALL_JOBS:
            async with self._turns:
                pass
        if self._place == len(self._page):
            if self._at_end:
                return None
            page = await self._history.page(self._topic, self._after, self._top)
            self._page, self._place = page.items, 0
            self.over = page.over
            if page.items:
                self.newest = page.items[-1].offset
            if self._topic != ALL_JOBS:
                self.ends.update(_ends(page.items))
            if self._after is None:
                self.begins = self._top if page.after is None else page.after
            self._after = page.after
            self._at_end = page.after is None
        items, size = list[Envelope](), 0
        for item in self._page[self._place : self._place + REPLAY_BATCH]:
            size += len(item.frame)
            if items and size > REPLAY_BYTES:
                break
            items.append(item)
        self._place += len(items)
        return FrameBatch(items)


def _ends(items: Iterable[Envelope]) -> Iterator[tuple[str, int]]:
    for item in items:
        message = item.message
        if isinstance(message, JobDeleted) or (not isinstance(message, BatchMessage) and ends_job(message)):
            yield message.job_id, item.offset


class Subscription:
    """Made by `Broadcaster.join`. Whoever made it calls `past` until it returns None, and `leave` at last."""

    __slots__ = ("_held", "_leave", "_limit", "_on_live", "_over", "_past", "_top", "outbox", "topic")

    def __init__(
        self,
        topic: str,
        outbox: Outbox,
        history: History,
        after: int | None,
        top: int,
        limit: int,
        turns: trio.Lock,
        leave: Callable[["Subscription"], None],
        on_live: Callable[[int], None] | None,
    ) -> None:
        self.topic = topic
        self.outbox = outbox
        self._top = top
        self._limit = limit  # bytes that may be held back
        self._past: Replay | None = Replay(history, topic, after, top, turns)
        self._held: Backlog[Envelope] = Backlog()
        self._over = False
        self._leave = leave
        self._on_live = on_live

    async def past(self) -> FrameBatch[Envelope] | None:
        """The next part of what was, oldest first; None once all of it was given and the live messages flow."""
        if self._past is None:
            return None
        batch = await self._past.next()
        if batch is None:
            if self._past.over:
                self._over = True
            elif self._on_live is not None:
                self._on_live(self.outbox.upto(self._top))
            self._past = self._on_live = None
            self._release()
        return batch

    def finish(self) -> None:
        """The topic has had its last message."""
        self._over = True
        if self._past is None:
            self._end()

    def deliver(self, batch: FrameBatch[Envelope]) -> bool:
        """Take live messages, in order; whether the next ones may go right into the outbox."""
        newer = [item for item in batch.items if item.offset > self._top]
        if self._past is not None:
            self._hold(newer)
            return False
        if newer:
            self.outbox.put(batch if len(newer) == len(batch.items) else FrameBatch(newer))
        return bool(newer)  # offsets only grow, so there is nothing to check from here on

    def leave(self) -> None:
        """Get nothing any more."""
        self._leave(self)

    def _release(self) -> None:
        if self._held:
            self.outbox.put(FrameBatch(self._held.take()))
        if self._over:
            self._end()

    def _end(self) -> None:
        self.outbox.end(BATCH_FINISHED if self.topic.startswith(batch_topic("")) else JOB_FINISHED)

    def _hold(self, items: Iterable[Envelope]) -> None:
        for item in items:
            self._held.put(item)
        if self._held.size > self._limit:
            self._held.clear()
            self.outbox.end(SLOW_CONSUMER)
