"""A subscription: one watcher of one topic, which receives first past messages (the replay), then live ones.

A subscription is registered first, and records the newest offset at that time (its top). Live messages newer than the
top are held back until all messages up to the top have been replayed. Then they are sent, and the outbox joins the
fan-out of the topic. So no message is missing or sent twice, however replay and live messages interleave.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import trio

from progressd.broadcast.envelope import Envelope, FrameBatch
from progressd.broadcast.outbox import Backlog, Outbox
from progressd.core.close_codes import BATCH_FINISHED, JOB_FINISHED, SLOW_CONSUMER
from progressd.core.messages import ALL_JOBS, BatchMessage, JobDeleted, batch_topic, ends_job

REPLAY_BATCH = 128  # messages that are put into an outbox before it must drain
REPLAY_BYTES = 65536  # limit for their bytes, well below that of an outbox; a larger message is sent alone


class Page(NamedTuple):
    """Past messages, oldest first. `after`: the offset after which the next page begins; None for the last page.

    A snapshot is one page. It may be slightly older than the request; newer messages are on the next pages.
    """

    items: Sequence[Envelope]
    after: int | None = None
    over: bool = False  # the topic has ended


class History(Protocol):
    """The source of past messages."""

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """Return messages with after < offset ≤ upto; for after=None the snapshot for a new watcher."""


class EmptyHistory:
    """The history of a broadcaster without a store: a watcher receives only new messages."""

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        """Return an empty page."""
        await trio.lowlevel.checkpoint()
        return Page([])


class Replay:
    """Past messages of a topic, in parts: after < offset ≤ top, or the snapshot at the top if `after` is None.

    All replays of the topic of all jobs, which may be long, share `replay_lock`. One such replay continues in each pass
    of the event loop, so a hundred watchers that reconnect at the same time do not delay other tasks.
    """

    def __init__(self, history: History, topic: str, after: int | None, top: int, replay_lock: trio.Lock) -> None:
        self.over = False  # the topic has ended, according to the pages read so far
        self.newest = 0  # offset of the last message read
        self.snapshot_offset = 0  # offset at which the snapshot was taken
        self.ends = dict[str, int]()  # offset of each job's end or deletion; empty for the topic of all jobs
        self._history = history
        self._topic = topic
        self._after = after
        self._top = top
        self._replay_lock = replay_lock
        self._page: Sequence[Envelope] = ()
        self._place = 0  # index of the next message in the page
        self._at_end = False

    async def next(self) -> FrameBatch[Envelope] | None:
        """Return the next part, oldest first; it may be empty. Return None after the last part."""
        if self._topic == ALL_JOBS:
            async with self._replay_lock:
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
                self.snapshot_offset = self._top if page.after is None else page.after
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
    """One watcher of one topic, made by `Broadcaster.join`.

    The owner calls `next_replay` until it returns None, and `leave` at the end.
    """

    __slots__ = ("_held", "_leave", "_limit", "_on_live", "_over", "_replay", "_top", "outbox", "topic")

    def __init__(
        self,
        topic: str,
        outbox: Outbox,
        history: History,
        after: int | None,
        top: int,
        limit: int,
        replay_lock: trio.Lock,
        leave: Callable[["Subscription"], None],
        on_live: Callable[[int], None] | None,
    ) -> None:
        self.topic = topic
        self.outbox = outbox
        self._top = top
        self._limit = limit  # bytes that may be held back
        self._replay: Replay | None = Replay(history, topic, after, top, replay_lock)
        self._held: Backlog[Envelope] = Backlog()
        self._over = False
        self._leave = leave
        self._on_live = on_live

    async def next_replay(self) -> FrameBatch[Envelope] | None:
        """Return the next past messages, oldest first; None once the replay is complete."""
        if self._replay is None:
            return None
        batch = await self._replay.next()
        if batch is None:
            if self._replay.over:
                self._over = True
            elif self._on_live is not None:
                self._on_live(self.outbox.resume_offset(self._top))
            self._replay = self._on_live = None
            self._release()
        return batch

    def finish(self) -> None:
        """End the stream after the last message of the topic."""
        self._over = True
        if self._replay is None:
            self._end()

    def deliver(self, batch: FrameBatch[Envelope]) -> bool:
        """Accept live messages, in order. Return whether further messages may be put directly into the outbox."""
        newer = [item for item in batch.items if item.offset > self._top]
        if self._replay is not None:
            self._hold(newer)
            return False
        if newer:
            self.outbox.put(batch if len(newer) == len(batch.items) else FrameBatch(newer))
        return bool(newer)  # offsets are ascending, so further messages need no check

    def leave(self) -> None:
        """Receive no further messages."""
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
