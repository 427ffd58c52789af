"""A subscription: one watcher of one topic, which receives first past messages (the replay), then live ones.

A subscription is registered first, and records the newest offset at that time (its top). The replay contains all
messages up to the top. Newer live messages are held back until the replay is complete. Then they are sent, and the
outbox joins the fan-out of the topic. So no message is missing or sent twice, however replay and live messages
interleave.

The replay of all jobs may be long. Meanwhile, live messages are dropped instead of held: the replay continues up to a
newer top, until few messages are left. So a watcher holds little memory, even if it reads slowly.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

import trio

from progressd.broadcast.envelope import Envelope, FrameBatch
from progressd.broadcast.outbox import Backlog, Outbox
from progressd.core.close_codes import BATCH_FINISHED, JOB_FINISHED, SLOW_CONSUMER
from progressd.core.errors import SlowConsumer
from progressd.core.messages import ALL_JOBS, BatchMessage, JobDeleted, batch_topic, ends_job
from progressd.system.event_loop_limiter import EventLoopLimiter

REPLAY_BATCH: Final = 256  # messages that are put into an outbox before it must drain
REPLAY_BYTES: Final = 65536  # limit for their bytes, well below that of an outbox; a larger message is sent alone
PARTS_PER_PASS: Final = 4  # parts of replays of all jobs in one pass of the event loop: about 0.5 ms
MAX_HELD: Final = 500  # offsets; the last part of a replay of all jobs is at most this long


class PastMessages(list[Envelope]):
    """Past messages, oldest first, in parts. Watchers that share the messages also share the encoded parts."""

    def __init__(self, items: Iterable[Envelope] = ()) -> None:
        super().__init__(items)
        self._parts: list[FrameBatch[Envelope]] = []
        self._place = 0  # index of the first message of the next part
        self._dropped = False

    def drop(self) -> None:
        """Free the messages, although watchers still read them."""
        self._dropped = True
        self.clear()
        self._parts.clear()

    def part(self, number: int) -> FrameBatch[Envelope] | None:
        """Return a part; None after the last. The messages must be complete. Raises SlowConsumer if dropped."""
        if self._dropped:
            raise SlowConsumer("the watcher read the first messages too slowly")
        if number == len(self._parts) and self._place < len(self):
            size, end = 0, self._place
            for item in self[self._place : self._place + REPLAY_BATCH]:
                size += len(item.frame)
                if end > self._place and size > REPLAY_BYTES:
                    break
                end += 1
            self._parts.append(FrameBatch(self[self._place : end]))
            self._place = end
        return self._parts[number] if number < len(self._parts) else None


class Page(NamedTuple):
    """Past messages, oldest first. `after`: the offset after which the next page begins; None for the last page.

    A snapshot is one page. It may be slightly older than the request; newer messages are on the next pages.
    """

    items: PastMessages
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
        return Page(PastMessages())


class Replay:
    """Past messages of a topic, in parts: after < offset ≤ top, or the snapshot at the top if `after` is None.

    `limiter` limits the parts of all replays of all jobs in one pass of the event loop, so a hundred watchers that
    reconnect at the same time do not delay other tasks.
    """

    def __init__(self, history: History, topic: str, after: int | None, top: int, limiter: EventLoopLimiter) -> None:
        self.over = False  # the topic has ended, according to the pages read so far
        self.newest = 0  # offset of the last message read
        self.snapshot_offset = 0  # offset at which the snapshot was taken
        self.ends = dict[str, int]()  # offset of each job's end or deletion; empty for the topic of all jobs
        self._history = history
        self._topic = topic
        self._after = after
        self._top = top
        self._limiter = limiter
        self._page = PastMessages()
        self._part = 0  # number of the next part of the page
        self._at_end = False

    async def next(self) -> FrameBatch[Envelope] | None:
        """Return the next part, oldest first; it may be empty. Return None after the last part.

        Raises SlowConsumer, StoreFailed, NotFound.
        """
        if self._topic == ALL_JOBS:
            await self._limiter.pass_through(1)
        part = self._page.part(self._part)
        if part is None:
            if self._at_end:
                self._page = PastMessages()
                return None
            await self._read_page()
            part = self._page.part(0) or FrameBatch([])
        self._part += 1
        return part

    def extend(self, top: int) -> None:
        """Continue after the last part, up to a newer offset."""
        self._after, self._top, self._at_end = self._top, top, False

    async def _read_page(self) -> None:
        page = await self._history.page(self._topic, self._after, self._top)
        self._page, self._part = page.items, 0
        self.over = page.over
        if page.items:
            self.newest = page.items[-1].offset
        if self._topic != ALL_JOBS:
            self.ends.update(_ends(page.items))
        if self._after is None:
            self.snapshot_offset = self._top if page.after is None else page.after
        self._after = page.after
        self._at_end = page.after is None


def _ends(items: Iterable[Envelope]) -> Iterator[tuple[str, int]]:
    for item in items:
        message = item.message
        if isinstance(message, JobDeleted) or (not isinstance(message, BatchMessage) and ends_job(message)):
            yield message.job_id, item.offset


class Subscription:
    """One watcher of one topic, made by `Broadcaster.join`.

    The owner calls `next_replay` until it returns None, and `leave` at the end.
    """

    __slots__ = (
        "_held",
        "_holding",
        "_leave",
        "_limit",
        "_newest_offset",
        "_on_live",
        "_over",
        "_replay",
        "_replays_all",
        "_top",
        "outbox",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        outbox: Outbox,
        start_replay: Callable[[int], Replay],
        newest_offset: Callable[[], int],
        limit: int,
        leave: Callable[["Subscription"], None],
        on_live: Callable[[int], None] | None,
        *,
        replays_all: bool,
    ) -> None:
        """`replays_all`: the replay can contain all live messages, so they need not be held."""
        self.topic = topic
        self.outbox = outbox
        self._newest_offset = newest_offset
        self._top = newest_offset()
        self._limit = limit  # bytes that may be held back
        self._replay: Replay | None = start_replay(self._top)
        self._held: Backlog[Envelope] = Backlog()
        self._replays_all = replays_all
        self._holding = not replays_all
        self._over = False
        self._leave = leave
        self._on_live = on_live

    async def next_replay(self) -> FrameBatch[Envelope] | None:
        """Return the next past messages, oldest first; None once the replay is complete."""
        if self._replay is None:
            return None
        batch = await self._replay.next()
        if batch is None and not self._holding:
            return await self._replay_dropped(self._replay)
        if batch is None:
            if self._replay.over:
                self._over = True
            elif self._on_live is not None:
                self._on_live(self.outbox.resume_offset(self._top))
            self._replay = self._on_live = None
            self._release()
        return batch

    async def _replay_dropped(self, replay: Replay) -> FrameBatch[Envelope] | None:
        """Continue the replay with the live messages that were dropped; hold further ones if these are few."""
        top, self._top = self._top, self._newest_offset()
        self._holding = self._top - top <= MAX_HELD
        if self._top > top:
            replay.extend(self._top)
        return await self.next_replay()

    @property
    def top(self) -> int:
        """Return the offset up to which the replay contains all messages."""
        return self._top

    def finish(self) -> None:
        """End the stream after the last message of the topic."""
        self._over = True
        if self._replay is None:
            self._end()

    def deliver(self, batch: FrameBatch[Envelope]) -> bool:
        """Accept live messages. Return whether the replay is complete, and one of the messages is newer."""
        newer = [item for item in batch.items if item.offset > self._top]
        if self._replay is not None:
            if self._holding:
                self._hold(newer)
            return False
        if newer:
            self.outbox.put(batch if len(newer) == len(batch.items) else FrameBatch(newer))
        return bool(newer)

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
            if self._replays_all:
                self._holding = False
            else:
                self.outbox.end(SLOW_CONSUMER)
