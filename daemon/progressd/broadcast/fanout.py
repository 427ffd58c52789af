"""The live watchers of a topic, and the one pass that hands a batch to all of them.

Here lies most of what a delivery costs beside the kernel's `send`. A loop that asks each outbox whether something waits
in it, and then sends, goes through five Python objects a watcher, and at 500 watchers none of them is in the cache any
more. So those for whom nothing waits are kept apart, as the bare `send` of each socket, and C goes over them.
"""

from collections.abc import Callable
from itertools import repeat
from operator import call
from typing import Protocol, TypeAlias

from progressd.broadcast.envelope import Envelope, FrameBatch

Send: TypeAlias = Callable[[bytes], int]  # of a non-blocking socket


class Receiver(Protocol):
    """An outbox in a crowd."""

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Send or keep the messages, in order. Never blocks, never raises."""


class SocketReceiver(Receiver, Protocol):
    """An outbox that may let the crowd write to its socket, as long as nothing waits in it."""

    def congest(self, batch: FrameBatch[Envelope], sent: int) -> None:
        """Of this batch the socket has taken only so many bytes."""


class FanOut:
    """Outboxes that get every batch, each in its order."""

    def __init__(self) -> None:
        self._direct: dict[SocketReceiver, Send] = {}
        self._others: dict[Receiver, None] = {}

    def add(self, member: Receiver) -> None:
        """Give an outbox what is put from here on."""
        self._others[member] = None

    def remove(self, member: Receiver) -> None:
        """Give it nothing any more."""
        self._others.pop(member, None)
        self._direct.pop(member, None)  # type: ignore[call-overload]

    def send_directly(self, member: SocketReceiver, send: Send) -> None:
        """Nothing waits in this outbox; until `ask_first`, write to its socket."""
        if member in self._others:
            del self._others[member]
            self._direct[member] = send

    def ask_first(self, member: SocketReceiver) -> None:
        """Something waits in this outbox, or it takes nothing any more."""
        if self._direct.pop(member, None) is not None:
            self._others[member] = None

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Hand the messages to everyone."""
        others = tuple(self._others)
        self._send_to_all(batch)
        for member in others:
            member.put(batch)

    def _send_to_all(self, batch: FrameBatch[Envelope]) -> None:
        frames, whole = batch.frames, len(batch.frames)
        sends = iter(self._direct.values())
        sent: list[int] = []
        while True:
            try:
                sent.extend(map(call, sends, repeat(frames)))
                break
            except BlockingIOError:  # by the one behind those in `sent`; `sends` is past it
                sent.append(0)
            except OSError:  # the peer is gone; the connection's reader finds out as well and ends it
                sent.append(whole)
        if sent.count(whole) < len(sent):
            for member, taken in zip(tuple(self._direct), sent, strict=True):
                if taken != whole:
                    member.congest(batch, taken)
