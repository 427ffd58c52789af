"""The memory budget: a limit for the waiting bytes of all connections together."""

import math
from typing import Protocol


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
