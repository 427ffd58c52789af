"""The waiting messages of one connection, in order, and a limit for the waiting bytes of all connections together."""

import math
from typing import Generic, Protocol

from progressd.broadcast.envelope import F


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
    """The sum of the waiting bytes. Past the limit, the members with the most bytes are given up first."""

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
