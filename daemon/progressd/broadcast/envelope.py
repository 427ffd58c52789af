"""A message with its offset, encoded once for all of its watchers: WebSocket frames and server-sent events."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from progressd.core.messages import BatchProgress, Hello, Notice, PagePreview, Progress, TopicMessage, encode

PING: Final = b"\x89\x00"


def text_frame(payload: bytes) -> bytes:
    """One final text frame around `payload` (UTF-8), as a server writes it (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def server_sent_event(payload: bytes, id_: str = "") -> bytes:
    """One event around `payload`, JSON on one line, with the id from which a client resumes (HTML §9.2.5)."""
    head = f"id: {id_}\n".encode() if id_ else b""
    return b"%bdata: %b\n\n" % (head, payload)


NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class Envelope:
    """A message on its way to its watchers, whichever topics they watch it through.

    `labels` are those of its job. They decide who may see the message, and are never sent.
    """

    __slots__ = ("_event", "_frame", "labels", "message", "offset")

    def __init__(self, offset: int, message: TopicMessage, labels: Mapping[str, str] = NO_LABELS) -> None:
        self.offset = offset
        self.message = message
        self.labels = labels
        self._frame: bytes | None = None
        self._event: bytes | None = None

    @property
    def frame(self) -> bytes:
        """The WebSocket frame, made when the first watcher needs it."""
        if self._frame is None:
            self._frame = text_frame(encode(self.message))
        return self._frame

    @property
    def event(self) -> bytes:
        """The server-sent event, with the cursor as its id; made when the first watcher needs it."""
        if self._event is None:
            self._event = server_sent_event(encode(self.message), str(self.message.cursor or ""))
        return self._event

    @property
    def key(self) -> tuple[type, str] | None:
        """Of progress and of previews, only the newest of a job, or of a batch, matters."""
        message = self.message
        if isinstance(message, BatchProgress):
            return (BatchProgress, message.batch_id)
        return (type(message), message.job_id) if isinstance(message, Progress | PagePreview) else None


class ReplayedEnvelope(Envelope):
    """A message that a topic replays on a connection with other topics. It has no cursor."""

    __slots__ = ()

    def __init__(self, item: Envelope) -> None:
        super().__init__(item.offset, replace(item.message, cursor=UNSET), item.labels)


class NoticeEnvelope:
    """What is said to one reader alone."""

    __slots__ = ("event", "frame")
    key = None

    def __init__(self, notice: Notice) -> None:
        payload = encode(notice)
        self.frame = text_frame(payload)
        self.event = server_sent_event(payload, notice.cursor if isinstance(notice, Hello) else "")


class Sendable(Protocol):
    """What can wait to be sent."""

    @property
    def frame(self) -> bytes:
        """One whole WebSocket frame."""

    @property
    def key(self) -> object:
        """While an item waits, a newer one with its key replaces it; None is never replaced."""


F = TypeVar("F", bound=Sendable)


class FrameBatch(Generic[F]):
    """What is sent together, in order; the bytes are joined once for all watchers."""

    __slots__ = ("frames", "items")

    def __init__(self, items: Sequence[F]) -> None:
        self.items = items
        self.frames = items[0].frame if len(items) == 1 else b"".join([item.frame for item in items])


class DeliveryCounters:
    """What was due to watchers so far: each message once for each of them; bytes are those of whole frames.

    So what a filter, an interval or newer progress kept back counts, and what is replayed to newcomers does not: to
    count at every outbox would cost each delivery something, to multiply costs nothing.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
