"""The memory channel of a topic: publishing does not block until it is full, and its reader takes all that is there."""

import math
from typing import Final, Generic, TypeVar

import trio

CAPACITY: Final = 1024  # messages a topic may queue before whoever publishes has to wait
MAX_TAKE: Final = 128  # messages handed to a watcher at once: 20 kB, about what one send takes

T = TypeVar("T")


class Channel(Generic[T]):
    """Any number of tasks put, one takes."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[T](CAPACITY)

    async def put(self, item: T) -> None:
        """Queue an item; waits, and only then is a checkpoint, when the channel is full."""
        try:
            try:
                self._send.send_nowait(item)
            except trio.WouldBlock:
                await self._send.send(item)
        except trio.BrokenResourceError:  # nobody takes any more: the last watcher has left meanwhile
            return

    async def take(self, not_before: float = -math.inf) -> list[T]:
        """Wait for an item, and until that time; the item, and what has been queued behind it."""
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
        """Take nothing more; whoever waits to put goes on."""
        self._receive.close()
