"""A reader: messages of a topic one by one, for whoever awaits them in this process."""

from types import TracebackType

import trio

from progressd.broadcast.envelope import Envelope, FrameBatch, NoticeEnvelope
from progressd.broadcast.fanout import FanOut
from progressd.broadcast.outbox import FLUSH_BYTES, Backlog
from progressd.broadcast.subscription import Subscription
from progressd.core.close_codes import SLOW_CONSUMER, CloseCode
from progressd.core.errors import SlowConsumer
from progressd.core.messages import Notice, TopicMessage


class ReaderOutbox:
    """Keeps the messages until they are asked for."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._backlog: Backlog[Envelope | NoticeEnvelope] = Backlog()
        self._news = trio.Event()
        self._closing: CloseCode | None = None

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Keep the messages; when too many bytes wait already, forget them and end as a slow consumer."""
        if self._closing is not None:
            return
        if self._backlog.size > self._limit:
            self._backlog.clear()
            self.end(SLOW_CONSUMER)
        else:
            for item in batch.items:
                self._backlog.put(item)
        self._news.set()

    def say(self, notice: Notice) -> None:
        """Keep what is said to this reader alone."""
        if self._closing is None:
            self._backlog.put(NoticeEnvelope(notice))
            self._news.set()

    def end(self, closing: CloseCode) -> None:
        """Nothing comes after what has been put."""
        self._closing = self._closing or closing
        self._news.set()

    def follow(self, crowd: FanOut) -> None:
        """Get what is put into the crowd."""
        crowd.add(self)

    def upto(self, offset: int) -> int:
        """All of it."""
        return offset

    def take(self, most: int) -> list[Envelope | NoticeEnvelope]:
        """What waits, as much as fits into `most` bytes, and at least one if there is one."""
        return self._backlog.take(most) if self._backlog else []

    async def wait(self) -> bool:
        """Wait until something waits; False after the end. Raises SlowConsumer where messages were forgotten."""
        while not self._backlog:
            if self._closing is SLOW_CONSUMER:
                raise SlowConsumer("the reader was too slow and has missed messages")
            if self._closing is not None:
                return False
            self._news = trio.Event()
            await self._news.wait()
        return True


class Reader:
    """What `Broadcaster.subscribe` returns: `async for message in reader`, which ends with the job.

    It is subscribed as soon as it exists, and until it ends, is closed (`with` does it), or nobody holds it any more.
    """

    def __init__(self, outbox: ReaderOutbox, subscription: Subscription) -> None:
        self._outbox = outbox
        self._subscription = subscription
        self._has_past = True  # some of what was has not been read yet

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> TopicMessage:
        """Raises SlowConsumer where the reader was too slow and messages were forgotten."""
        while items := await self.read(1):
            [item] = items
            if isinstance(item, Envelope):
                return item.message
        raise StopAsyncIteration

    async def read(self, most: int = FLUSH_BYTES) -> list[Envelope | NoticeEnvelope]:
        """Wait for what comes next, and take as much as fits into `most` bytes; nothing after the end.

        Raises like `__anext__`, and what reading from the store raises.
        """
        while not (items := self._outbox.take(most)):
            if self._has_past:
                batch = await self._subscription.past()
                if batch is None:
                    self._has_past = False
                else:
                    self._subscription.outbox.put(batch)
            elif not await self._outbox.wait():
                self.close()
                break
        return items

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Get nothing any more."""
        self._subscription.leave()
