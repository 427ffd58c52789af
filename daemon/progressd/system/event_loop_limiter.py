"""Limit the work that clients of one kind cause in one pass of the event loop."""

from typing import Final

import trio

USUAL_PASS: Final = 0.008  # seconds


class EventLoopLimiter:
    """Release tasks in order of arrival, until their weights add up to `most` in one pass.

    Each pass releases at least one task, even a heavier one. After a pass that took longer than USUAL_PASS, the weights
    may add up to proportionally more, but at most to `most_after_long_pass`. So a daemon with long passes still accepts
    many tasks.
    """

    def __init__(self, most: int, most_after_long_pass: int = 0) -> None:
        self._most = self._left = most
        self._most_after_long_pass = most_after_long_pass
        self._waiting: dict[trio.Event, int] = {}  # weights, in order of arrival
        self._scheduled = False
        self._pass_began = 0.0

    async def pass_through(self, weight: int) -> None:
        """Wait for a pass with capacity. This is a checkpoint only if no capacity is left."""
        if self._left > 0 and not self._waiting:
            self._left -= weight  # what is left may also be used in a later pass: so most calls schedule nothing
            return
        released = trio.Event()
        self._waiting[released] = weight
        self._schedule()
        try:
            await released.wait()
        finally:
            self._waiting.pop(released, None)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._pass_began = trio.current_time()
            trio.lowlevel.current_trio_token().run_sync_soon(self._begin_pass)  # in the next pass

    def _begin_pass(self) -> None:
        self._scheduled = False
        usual_passes = (trio.current_time() - self._pass_began) / USUAL_PASS
        self._left = max(self._most, min(int(self._most * usual_passes), self._most_after_long_pass))
        while self._waiting and self._left > 0:
            released = next(iter(self._waiting))
            self._left -= self._waiting.pop(released)
            released.set()
        if self._waiting:
            self._schedule()
