"""A condition for tasks to wait for. It replaces an event that must be recreated after each set."""

from collections.abc import Callable

import trio


class Condition:
    """Wake tasks when the state that they wait for may have changed.

    The owner of the state calls `notify` after each change. Without a waiting task, the call costs nothing.
    """

    __slots__ = ("_changed",)

    def __init__(self) -> None:
        self._changed: trio.Event | None = None  # exists while a task waits

    def notify(self) -> None:
        """Let the waiting tasks check their predicates again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until the predicate is true. Return without a checkpoint if it is already true."""
        while not predicate():
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
