"""The fan-out of a topic: its memory channel, and one pass that sends a batch to all live watchers.

Apart from the kernel's `send`, most of the cost of a delivery is in this module. A loop that checks each outbox for
waiting messages, and then sends, touches five Python objects per watcher. With 500 watchers these objects no longer fit
into the CPU cache. So empty outboxes are stored separately, as the bare `send` of their socket, and C code iterates
over them.
"""

import math
from collections.abc import Callable
from itertools import repeat
from operator import call
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

import trio

from progressd.broadcast.envelope import Envelope, FrameBatch

CAPACITY: Final = 1024  # messages in the queue of a topic before publishing blocks
MAX_TAKE: Final = 128  # messages sent to a watcher at once: 20 kB, about as much as one send accepts

T = TypeVar("T")
Send: TypeAlias = Callable[[bytes], int]  # `send` of a non-blocking socket


class Channel(Generic[T]):
    """A queue for any number of tasks that put items, and one task that takes them."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[T](CAPACITY)

    async def put(self, item: T) -> None:
        """Queue an item. Waits if the channel is full; otherwise this is no checkpoint."""
        try:
            try:
                self._send.send_nowait(item)
            except trio.WouldBlock:
                await self._send.send(item)
        except trio.BrokenResourceError:  # the last watcher has left and the channel is closed
            return

    async def take(self, not_before: float = -math.inf) -> list[T]:
        """Wait until an item is queued, and until `not_before`. Return the queued items, at most MAX_TAKE."""
        items = [await self._receive.receive()]
        if trio.current_time() < not_before:
            await trio.sleep_until(not_before)
        try:
            while len(items) < MAX_TAKE:
                items.append(self._receive.receive_nowait())
        except trio.WouldBlock:
            pass
        return items

    def close(self) -> None:
        """Close the channel: tasks that wait in `put` continue, and their items are dropped."""
        self._receive.close()


class Receiver(Protocol):
    """An outbox that receives every batch."""

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Send or keep the messages, in order. Never blocks, never raises."""


class SocketReceiver(Receiver, Protocol):
    """An outbox to whose socket the fan-out may write while the outbox is empty."""

    def partly_sent(self, batch: FrameBatch[Envelope], sent: int) -> None:
        """Keep the rest of a batch after the socket accepted only `sent` bytes."""


class FanOut:
    """Outboxes that receive every batch, in order."""

    def __init__(self) -> None:
        self._direct: dict[SocketReceiver, Send] = {}
        self._others: dict[Receiver, None] = {}

    def add(self, receiver: Receiver) -> None:
        """Send all further batches to an outbox."""
        self._others[receiver] = None

    def remove(self, receiver: Receiver) -> None:
        """Send nothing more to an outbox."""
        self._others.pop(receiver, None)
        self._direct.pop(receiver, None)  # type: ignore[call-overload]

    def send_directly(self, receiver: SocketReceiver, send: Send) -> None:
        """Write to the socket of an empty outbox, until `stop_direct_sends`."""
        if receiver in self._others:
            del self._others[receiver]
            self._direct[receiver] = send

    def stop_direct_sends(self, receiver: SocketReceiver) -> None:
        """Call `put` of an outbox again, because messages wait in it or it is closed."""
        if self._direct.pop(receiver, None) is not None:
            self._others[receiver] = None

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Send a batch to all outboxes."""
        others = tuple(self._others)
        self._send_to_all(batch)
        for receiver in others:
            receiver.put(batch)

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
            for receiver, taken in zip(tuple(self._direct), sent, strict=True):
                if taken != whole:
                    receiver.partly_sent(batch, taken)
