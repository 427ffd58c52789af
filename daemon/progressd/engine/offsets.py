"""The offsets of messages: each is assigned once, even across a crash, and in the order of publication.

While the store commits an entry, progress of other jobs is published with offsets below those of the entry. For this,
an entry leaves a gap as large as recent commits needed. If it is too small, progress waits for the commit.
"""

import math
from typing import Final

from progressd.store.base import Store
from progressd.system.condition import Condition

RESERVE_AHEAD: Final = 100_000  # offsets reserved in the store at a time; a restart skips the unused ones
MAX_GAP: Final = 200  # offsets; in a larger burst, progress waits for the commit


class Offsets:
    """The next offset. The store has reserved all offsets below `_reserved`."""

    def __init__(self, store: Store, ahead: int = RESERVE_AHEAD) -> None:
        self.next = self._reserved = store.first_offset
        self._store = store
        self._ahead = ahead
        self._limit = math.inf  # the first offset of the entry in the store, if any
        self._opened_at = 0
        self._wanted = 0  # offsets that progress needed during the commit
        self._gap = 0
        self._changed = Condition()

    def available(self, count: int) -> bool:
        """Return whether the next `count` offsets can be assigned to progress."""
        return self.next + count <= self._limit and self.next + count <= self._reserved

    async def wait_available(self, count: int) -> None:
        """Wait until `count` offsets may be available: reserve them, or wait for the commit. Raises StoreFailed."""
        if self.next + count > self._limit:
            self._wanted = max(self._wanted, self.next + count - self._opened_at)
            await self._changed.wait_for(lambda: self.next + count <= self._limit)
        elif self.next + count > self._reserved:
            await self._reserve_below(self.next + count + self._ahead)

    async def open(self, count: int) -> int:
        """Return the first of `count` offsets for the messages of an entry. Raises StoreFailed."""
        while self.next + self._gap + count > self._reserved:
            await self._reserve_below(self.next + self._gap + count + self._ahead)
        self._opened_at, self._wanted = self.next, 0
        self._limit = first = self.next + self._gap
        return first

    def close(self, following: int) -> None:
        """End the entry. `following`: the offset after its last message, which is not reused if the commit failed."""
        used = max(self._wanted, self.next - self._opened_at)
        self._gap = min(max(2 * used, self._gap * 3 // 4), MAX_GAP)
        self._limit = math.inf
        self.next = following
        self._changed.notify()

    async def probe(self) -> None:
        """Reserve one more offset. This tests a write to the store, and has no other effect."""
        await self._reserve_below(self._reserved + 1)

    async def _reserve_below(self, offset: int) -> None:
        await self._store.reserve(offset)
        self._reserved = max(self._reserved, offset)  # several tasks may call this at the same time
