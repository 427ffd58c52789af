"""The memory channel of a topic. Publishing blocks only if it is full; its reader takes many messages at once."""

import math
from typing import Final, Generic, TypeVar

import trio

CAPACITY: Final = 1024  # messages in the queue of a topic before publishing blocks
MAX_TAKE: Final = 128  # messages sent to a watcher at once: 20 kB, about as much as one send accepts

T = TypeVar("T")


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
        """Wait for an item, and until `not_before`. Return it and the items queued after it."""
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
