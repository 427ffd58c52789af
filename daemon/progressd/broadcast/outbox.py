"""The outboxes of the watchers, and the fan-out of a topic, which sends a batch to all of them.

The outbox of a connection holds its unsent messages, and has a task that writes them to the socket. `put` never
blocks. Messages that the socket does not accept wait in order. A newer progress replaces a waiting one of the same job;
state changes are never dropped. If an outbox exceeds its limit, it closes the connection with `slow consumer`. A
MemoryBudget limits the waiting bytes of all connections together.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from itertools import repeat
from operator import call
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias

import trio

from progressd.broadcast.envelope import Envelope, F, FrameBatch, Sendable
from progressd.core.close_codes import GONE, SLOW_CONSUMER, CloseCode

FLUSH_BYTES: Final = 65536  # bytes taken from the backlog at once; newer progress can still replace the rest
_CLOSED: Final = CloseCode(1005, "closed")  # closed by the client or after a protocol error, not by `end`

Send: TypeAlias = Callable[[bytes], int]  # `send` of a non-blocking socket


class Backlog(Generic[F]):
    """Waiting items, in order; only the newest item with a given key is kept. `size` is in bytes of frames."""

    __slots__ = ("_count", "_waiting", "size")

    def __init__(self) -> None:
        self._waiting: dict[object, F] = {}
        self._count = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, item: F) -> bool:
        """Add an item at the end. Return whether it replaced an item with the same key."""
        key = item.key
        replaced = None
        if key is None:
            self._count += 1
            key = self._count
        elif (replaced := self._waiting.pop(key, None)) is not None:
            self.size -= len(replaced.frame)
        self._waiting[key] = item
        self.size += len(item.frame)
        return replaced is not None

    def take(self, max_bytes: int | None = None) -> list[F]:
        """Remove and return the oldest items: all, or as many as fit into `max_bytes`, but at least one."""
        if max_bytes is None or self.size <= max_bytes:
            everything = list(self._waiting.values())
            self.clear()
            return everything
        keys: list[object] = []  # no copy of all items: a reader takes one at a time
        for key, item in self._waiting.items():
            max_bytes -= len(item.frame)
            if keys and max_bytes < 0:
                break
            keys.append(key)
        taken = [self._waiting.pop(key) for key in keys]
        self.size -= sum([len(item.frame) for item in taken])
        return taken

    def clear(self) -> None:
        """Remove everything."""
        self._waiting.clear()
        self.size = 0


class BudgetMember(Protocol):
    """An object that holds waiting bytes, such as the outbox of one connection."""

    def give_up(self) -> None:
        """Drop the waiting bytes and close the connection."""


class MemoryBudget:
    """The sum of the waiting bytes. If it exceeds the limit, the members with the most bytes are closed first."""

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.used = 0
        self.coalesced = 0  # number of messages that newer ones have replaced
        self._members: dict[BudgetMember, int] = {}

    def hold(self, member: BudgetMember, size: int) -> None:
        """Set the number of waiting bytes of a member."""
        self.used += size - self._members.pop(member, 0)
        if size:
            self._members[member] = size
        while self.used > self.limit:
            slowest = max(self._members, key=self._members.__getitem__)
            self.used -= self._members.pop(slowest)
            slowest.give_up()


class ControlFrame(NamedTuple):
    """A frame for a single connection: trio-websocket's handshake, pongs and close, and the server's notices."""

    frame: bytes

    @property
    def key(self) -> object:
        """A newer ping or pong may replace a waiting one (RFC 6455 §5.5.3)."""
        return self.frame[:1] if self.frame[:1] in (b"\x89", b"\x8a") else None


class Outbox(Protocol):
    """The destination of a subscription."""

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Send or keep the messages, in order. Never blocks, never raises."""

    def end(self, code: CloseCode) -> None:
        """Send the messages that were put, and then close."""

    def follow(self, fan_out: "FanOut") -> None:
        """Receive all further batches of a fan-out."""

    def resume_offset(self, offset: int) -> int:
        """Return the offset from which a client resumes after messages up to `offset`; smaller if any are held back."""


class Receiver(Protocol):
    """What a fan-out sends to."""

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Send or keep the messages, in order. Never blocks, never raises."""


class FanOut:
    """The outboxes that receive every batch of a topic, in order.

    Apart from the kernel's `send`, most of the cost of a delivery is here. A loop that checks each outbox for waiting
    messages, and then sends, touches five Python objects per watcher. With 500 watchers these objects no longer fit
    into the CPU cache. So empty outboxes are stored separately, as the bare `send` of their socket, and C code iterates
    over them.
    """

    __slots__ = ("_direct", "_others")

    def __init__(self) -> None:
        self._direct: dict[SocketOutbox, Send] = {}
        self._others: dict[Receiver, None] = {}

    def add(self, outbox: Receiver) -> None:
        """Send all further batches to an outbox."""
        self._others[outbox] = None

    def remove(self, outbox: Receiver) -> None:
        """Send nothing more to an outbox."""
        self._others.pop(outbox, None)
        self._direct.pop(outbox, None)  # type: ignore[call-overload]

    def send_directly(self, outbox: "SocketOutbox", send: Send) -> None:
        """Write to the socket of an empty outbox, until `stop_direct_sends`."""
        if outbox in self._others:
            del self._others[outbox]
            self._direct[outbox] = send

    def stop_direct_sends(self, outbox: "SocketOutbox") -> None:
        """Call `put` of an outbox again, because messages wait in it or it is closed."""
        if self._direct.pop(outbox, None) is not None:
            self._others[outbox] = None

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Send a batch to all outboxes."""
        others = tuple(self._others)
        self._send_to_all(batch)
        for outbox in others:
            outbox.put(batch)

    def _send_to_all(self, batch: FrameBatch[Envelope]) -> None:
        frames, whole = batch.frames, len(batch.frames)
        sends = iter(self._direct.values())
        sent: list[int] = []
        while True:
            try:
                sent.extend(map(call, sends, repeat(frames)))
                break
            except BlockingIOError:  # the socket after those in `sent` raised this; `sends` is already past it
                sent.append(0)
            except OSError:  # the peer is gone; the reader of the connection notices this and closes the connection
                sent.append(whole)
        if sent.count(whole) < len(sent):
            for outbox, taken in zip(tuple(self._direct), sent, strict=True):
                if taken != whole:
                    outbox.keep_unsent(batch.items, taken)


_NO_FAN_OUT: Final = FanOut()  # placeholder for an outbox that follows no fan-out


class Transport(Protocol):
    """The part of a connection that an outbox uses."""

    @property
    def send(self) -> Send:
        """Write without blocking; return the number of bytes. Raises BlockingIOError if full, OSError if dead."""

    async def wait_writable(self) -> None:
        """Wait until the socket is writable. Raises ClosedResourceError."""


class SocketOutbox:
    """Write frames directly to a non-blocking socket while no messages wait and the socket is writable.

    This makes a delivery cheap: 3.4 µs of CPU, or 1.5 µs if three messages share a send. One task per connection that
    calls trio-websocket's `send_message` takes 47 µs. A sender task runs only while messages wait.
    """

    __slots__ = (
        "_backlog",
        "_budget",
        "_closed",
        "_code",
        "_empty",
        "_fan_out",
        "_limit",
        "_on_end",
        "_rest",
        "_sending",
        "_start_sender",
        "_transport",
    )

    def __init__(
        self,
        transport: Transport,
        limit: int,
        start_sender: Callable[[Callable[[], Awaitable[None]]], None],
        on_end: Callable[[CloseCode], None],
        budget: MemoryBudget | None = None,
    ) -> None:
        self._budget = budget or MemoryBudget()
        self._transport = transport
        self._limit = limit
        self._start_sender = start_sender
        self._on_end = on_end
        self._backlog: Backlog[Sendable] = Backlog()
        self._rest = b""  # bytes already being sent; nothing may precede them
        self._sending = False  # messages wait, and the sender task runs
        self._code: CloseCode | None = None  # not None once further messages are dropped
        self._closed = False  # the close frame is sent, or waits
        self._empty: trio.Event | None = None  # set when the sender task has finished
        self._fan_out = _NO_FAN_OUT

    def follow(self, fan_out: FanOut) -> None:
        """Receive all further batches of a fan-out. While no messages wait, the fan-out writes to the socket itself."""
        self._fan_out = fan_out
        fan_out.add(self)
        self._send_directly()

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Send the messages, and keep the ones that the socket does not accept.

        Close the connection if more bytes wait than the limit allows.
        """
        if self._code is not None:
            return
        if self._sending:
            self._keep(batch.items)
        elif (sent := self._send(batch.frames)) != len(batch.frames):
            self.keep_unsent(batch.items, sent)

    def resume_offset(self, offset: int) -> int:
        """See Outbox. Waiting messages are sent before any data that is put or written later."""
        return offset

    def write(self, data: bytes) -> None:
        """Send whole frames for this connection only, in order with the messages, even after `end`."""
        control = ControlFrame(data)
        if self._closed or self._code is GONE:
            return
        if self._sending:
            self._keep([control])
        elif (sent := self._send(data)) != len(data):
            self.keep_unsent([control], sent)

    def write_close(self, data: bytes) -> None:
        """Send a close frame. Nothing follows it (RFC 6455 §5.5.1)."""
        self.write(data)
        self._closed = True
        if self._code is None:
            self._close(_CLOSED)

    def hold(self) -> None:
        """Keep all data of a new connection until `release`. It does not count against the limits."""
        self._sending = True

    def release(self) -> None:
        """Send the data that was kept since `hold`, with one system call."""
        if not self._sending or self._empty is not None:
            return
        self._sending = False
        items = self._backlog.take()
        frames = b"".join([item.frame for item in items])
        if (sent := self._send(frames)) != len(frames):
            self.keep_unsent(items, sent)
        else:
            self._send_directly()

    def end(self, code: CloseCode) -> None:
        """Accept no further messages, and close the connection after the waiting ones."""
        if self._code is None:
            self._close(code)
            self._on_end(code)

    def give_up(self) -> None:
        """Drop the waiting messages and close as a slow consumer, even if a different close was queued after them."""
        self._backlog.clear()
        if self._code not in (SLOW_CONSUMER, GONE):
            self._close(SLOW_CONSUMER)
            self._on_end(SLOW_CONSUMER)

    def discard(self) -> None:
        """Release everything. The nursery of the connection is about to close, so no sender task may start."""
        self._close(GONE)
        self._budget.hold(self, 0)
        del self._transport, self._start_sender, self._on_end  # break the reference cycles

    @property
    def congested(self) -> bool:
        """Return whether messages wait."""
        return self._sending

    @property
    def unsent(self) -> int:
        """Return the number of unsent bytes of the current send."""
        return len(self._rest)

    async def drained(self) -> None:
        """Wait until the outbox is empty. On a dead socket it counts as empty."""
        if self._empty is not None:
            await self._empty.wait()
        else:
            await trio.lowlevel.checkpoint()

    def _close(self, code: CloseCode) -> None:
        self._code = code
        self._fan_out.stop_direct_sends(self)

    def _send_directly(self) -> None:
        if self._code is None and not self._sending:
            self._fan_out.send_directly(self, self._transport.send)

    def keep_unsent(self, items: Sequence[Sendable], sent: int) -> None:
        """Keep the rest of some items after `sent` bytes, and start the sender task."""
        self._sending = True
        self._empty = trio.Event()
        self._fan_out.stop_direct_sends(self)
        for position, item in enumerate(items):
            if sent < len(item.frame):  # the socket was full here
                if sent:
                    self._rest = item.frame[sent:]
                    position += 1
                self._keep(items[position:])
                break
            sent -= len(item.frame)
        self._start_sender(self._flush)

    def _keep(self, items: Sequence[Sendable]) -> None:
        for item in items:
            self._budget.coalesced += self._backlog.put(item)
        if self._code is not None or self._empty is None:  # control frames, or held data: few and small
            return
        size = len(self._rest) + self._backlog.size
        if size > self._limit:
            self.give_up()
            size = len(self._rest)
        self._budget.hold(self, size)

    async def _flush(self) -> None:
        """Write until the outbox is empty: the sender task.

        If the task is cancelled, the outbox sends nothing further, because a frame may be incomplete.
        """
        empty = self._empty
        assert empty is not None
        while self._rest or self._backlog:
            if self._code is GONE:
                return
            if not self._rest:
                self._rest = b"".join([item.frame for item in self._backlog.take(FLUSH_BYTES)])
            try:
                await self._transport.wait_writable()
            except trio.ClosedResourceError:
                empty.set()  # the waiting messages are never sent
                return
            if self._code is GONE:
                return
            self._rest = self._rest[self._send(self._rest) :]
            self._budget.hold(self, len(self._rest) + self._backlog.size)
        self._sending = False
        self._send_directly()
        empty.set()

    def _send(self, frames: bytes) -> int:
        """Return the number of bytes that the socket accepted, or the total number on a dead socket."""
        try:
            return self._transport.send(frames)
        except BlockingIOError:
            return 0
        except OSError:  # the peer is gone; the reader of the connection notices this and closes the connection
            return len(frames)
