"""A reader: messages of a topic one by one, for whoever awaits them in this process."""

from collections import deque
from types import TracebackType

import trio

from progressd.broadcast.crowd import Crowd
from progressd.broadcast.outbox import Backlog
from progressd.broadcast.published import Batch, Published
from progressd.broadcast.subscription import Subscription
from progressd.core.closing import SLOW_CONSUMER, Closing
from progressd.core.errors import SlowConsumer
from progressd.core.messages import TopicMessage


class ReaderOutbox:
    """Keeps the messages until they are asked for."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._backlog: Backlog[Published] = Backlog()
        self._news = trio.Event()
        self._closing: Closing | None = None

    def put(self, batch: Batch[Published]) -> None:
        """Keep the messages; past the limit of bytes, forget them and end as a slow consumer."""
        if self._closing is not None:
            return
        for item in batch.items:
            self._backlog.put(item)
        if self._backlog.size > self._limit:
            self._backlog.clear()
            self.end(SLOW_CONSUMER)
        self._news.set()

    def end(self, closing: Closing) -> None:
        """Nothing comes after what has been put."""
        self._closing = self._closing or closing
        self._news.set()

    def follow(self, crowd: Crowd) -> None:
        """Get what is put into the crowd."""
        crowd.add(self)

    async def next(self) -> Published | None:
        """Wait for the oldest message; None after the end. Raises SlowConsumer where messages were forgotten."""
        while not self._backlog:
            if self._closing is SLOW_CONSUMER:
                raise SlowConsumer("the reader was too slow and has missed messages")
            if self._closing is not None:
                return None
            self._news = trio.Event()
            await self._news.wait()
        return self._backlog.take(1)[0]


class Reader:
    """What `Broadcaster.subscribe` returns: `async for message in reader`, which ends with the job.

    It is subscribed as soon as it exists, and until it ends, is closed (`with` does it), or nobody holds it any more.
    """

    def __init__(self, outbox: ReaderOutbox, subscription: Subscription) -> None:
        self._outbox = outbox
        self._subscription = subscription
        self._past: deque[Published] | None = deque()  # None: all of it has been read

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> TopicMessage:
        """Raises SlowConsumer where the reader was too slow and messages were forgotten."""
        while self._past is not None:
            if self._past:
                return self._past.popleft().message
            batch = await self._subscription.past()
            self._past = None if batch is None else deque(batch.items)
        item = await self._outbox.next()
        if item is None:
            self.close()
            raise StopAsyncIteration
        return item.message

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
