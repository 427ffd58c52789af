"""The reader: receives the messages of a topic one by one, in a task of this process."""

from types import TracebackType

import trio

from progressd.broadcast.backlog import Backlog
from progressd.broadcast.envelope import Envelope, FrameBatch, NoticeEnvelope
from progressd.broadcast.fanout import FanOut
from progressd.broadcast.outbox import FLUSH_BYTES
from progressd.broadcast.subscription import Subscription
from progressd.core.close_codes import SLOW_CONSUMER, CloseCode
from progressd.core.errors import SlowConsumer
from progressd.core.messages import Notice, TopicMessage


class ReaderOutbox:
    """An outbox that keeps messages until they are read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._backlog: Backlog[Envelope | NoticeEnvelope] = Backlog()
        self._changed = trio.Event()
        self._code: CloseCode | None = None

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Keep the messages. If too many bytes already wait, drop all messages and end as a slow consumer."""
        if self._code is not None:
            return
        if self._backlog.size > self._limit:
            self._backlog.clear()
            self.end(SLOW_CONSUMER)
        else:
            for item in batch.items:
                self._backlog.put(item)
        self._changed.set()

    def say(self, notice: Notice) -> None:
        """Keep a notice for this reader."""
        if self._code is None:
            self._backlog.put(NoticeEnvelope(notice))
            self._changed.set()

    def end(self, code: CloseCode) -> None:
        """See Outbox."""
        self._code = self._code or code
        self._changed.set()

    def follow(self, fan_out: FanOut) -> None:
        """See Outbox."""
        fan_out.add(self)

    def resume_offset(self, offset: int) -> int:
        """See Outbox."""
        return offset

    def take(self, max_bytes: int) -> list[Envelope | NoticeEnvelope]:
        """Remove the oldest messages that fit into `max_bytes`, at least one if any wait, and return them."""
        return self._backlog.take(max_bytes) if self._backlog else []

    async def wait(self) -> bool:
        """Wait for a message; return False after the end. Raises SlowConsumer if messages were dropped."""
        while not self._backlog:
            if self._code is SLOW_CONSUMER:
                raise SlowConsumer("the reader was too slow and missed messages")
            if self._code is not None:
                return False
            self._changed = trio.Event()
            await self._changed.wait()
        return True


class Reader:
    """An iterator (`async for message in reader`) made by `Broadcaster.subscribe`. The iteration ends with the job.

    The reader is subscribed from its creation until it ends, is closed (`with` closes it), or is garbage-collected.
    """

    def __init__(self, outbox: ReaderOutbox, subscription: Subscription) -> None:
        self._outbox = outbox
        self._subscription = subscription
        self._replaying = True

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> TopicMessage:
        """Return the next message. Raises SlowConsumer if the reader was too slow and messages were dropped."""
        while items := await self.read(1):
            [item] = items
            if isinstance(item, Envelope):
                return item.message
        raise StopAsyncIteration

    async def read(self, max_bytes: int = FLUSH_BYTES) -> list[Envelope | NoticeEnvelope]:
        """Wait for messages, and return as many as fit into `max_bytes`; return an empty list after the end.

        Raises SlowConsumer, and StoreFailed during the replay.
        """
        while not (items := self._outbox.take(max_bytes)):
            if self._replaying:
                batch = await self._subscription.next_replay()
                if batch is None:
                    self._replaying = False
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
        """Receive no further messages."""
        self._subscription.leave()
