"""Messages on their way to the watchers: the envelope of each, the channel of a topic, and the batch that is sent.

An envelope is a message with its offset. It is encoded once for all watchers, for WebSocket and server-sent events.
"""

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

import trio
from msgspec import UNSET
from msgspec.structs import replace

from progressd.core.messages import BatchProgress, Hello, Notice, PagePreview, Progress, TopicMessage, encode, topics_of

PING: Final = b"\x89\x00"
CAPACITY: Final = 1024  # messages in the queue of a topic before publishing blocks
MAX_TAKE: Final = 128  # messages sent to a watcher at once: 20 kB, about as much as one send accepts

T = TypeVar("T")


def text_frame(payload: bytes) -> bytes:
    """Return one final text frame around `payload` (UTF-8), as a server writes it (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def server_sent_event(payload: bytes, id_: str = "") -> bytes:
    """Return one event around `payload` (JSON on one line). `id_`: where a client resumes (HTML §9.2.5)."""
    head = f"id: {id_}\n".encode() if id_ else b""
    return b"%bdata: %b\n\n" % (head, payload)


NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class Envelope:
    """A message on its way to the watchers of any of its topics.

    `labels`: the labels of its job. They decide which watchers may see the message, and are never sent.
    """

    __slots__ = ("_event", "_frame", "labels", "message", "offset")

    def __init__(self, offset: int, message: TopicMessage, labels: Mapping[str, str] = NO_LABELS) -> None:
        self.offset = offset
        self.message = message
        self.labels = labels
        self._frame: bytes | None = None
        self._event: bytes | None = None

    @property
    def topics(self) -> tuple[str, ...]:
        """Return the topics of the message."""
        return topics_of(self.message)

    @property
    def frame(self) -> bytes:
        """Return the WebSocket frame, encoded when the first watcher needs it."""
        if self._frame is None:
            self._frame = text_frame(encode(self.message))
        return self._frame

    @property
    def event(self) -> bytes:
        """Return the server-sent event, with the cursor as its id, encoded when the first watcher needs it."""
        if self._event is None:
            self._event = server_sent_event(encode(self.message), str(self.message.cursor or ""))
        return self._event

    @property
    def key(self) -> tuple[type, str] | None:
        """Return the key by which a newer message replaces this one. Only progress and previews are replaced."""
        message = self.message
        if isinstance(message, BatchProgress):
            return (BatchProgress, message.batch_id)
        return (type(message), message.job_id) if isinstance(message, Progress | PagePreview) else None


class ReplayedEnvelope(Envelope):
    """A message that one topic replays on a connection of many topics. It has no cursor."""

    __slots__ = ()

    def __init__(self, item: Envelope) -> None:
        super().__init__(item.offset, replace(item.message, cursor=UNSET), item.labels)


class NoticeEnvelope:
    """A notice for a single reader."""

    __slots__ = ("event", "frame")
    key = None

    def __init__(self, notice: Notice) -> None:
        payload = encode(notice)
        self.frame = text_frame(payload)
        self.event = server_sent_event(payload, notice.cursor if isinstance(notice, Hello) else "")


class Channel(Generic[T]):
    """A queue for any number of tasks that put items, and one task that takes them."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[T](CAPACITY)

    def put_nowait(self, item: T) -> bool:
        """Queue an item. Return whether there was room."""
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            return False
        except trio.BrokenResourceError:  # the last watcher has left and the channel is closed
            pass
        return True

    async def put(self, item: T) -> None:
        """Queue an item. Waits if the channel is full; otherwise this is no checkpoint."""
        if not self.put_nowait(item):
            with contextlib.suppress(trio.BrokenResourceError):
                await self._send.send(item)

    async def take(self) -> list[T]:
        """Wait until an item is queued. Return the queued items, at most MAX_TAKE."""
        return [await self._receive.receive(), *self.take_nowait(MAX_TAKE - 1)]

    def take_nowait(self, limit: int) -> list[T]:
        """Return the queued items, at most `limit`."""
        items: list[T] = []
        try:
            while len(items) < limit:
                items.append(self._receive.receive_nowait())
        except trio.WouldBlock:
            pass
        return items

    def close(self) -> None:
        """Close the channel: tasks that wait in `put` continue, and their items are dropped."""
        self._receive.close()


class Sendable(Protocol):
    """An item in a backlog."""

    @property
    def frame(self) -> bytes:
        """One whole WebSocket frame."""

    @property
    def key(self) -> object:
        """A newer item with the same key replaces a waiting one. An item with the key None is never replaced."""


F = TypeVar("F", bound=Sendable)


class FrameBatch(Generic[F]):
    """Messages that are sent together, in order. Their frames are joined once for all watchers."""

    __slots__ = ("frames", "items")

    def __init__(self, items: Sequence[F]) -> None:
        self.items = items
        self.frames = items[0].frame if len(items) == 1 else b"".join([item.frame for item in items])


class DeliveryCounters:
    """Counts of deliveries: each message counts once per watcher of its topics, with the bytes of its whole frame.

    Messages held back by a filter, an interval or newer progress count; replayed messages do not. Exact counts in every
    outbox would slow down each delivery.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
