"""Limit the work that clients of one kind cause in one pass of the event loop."""

from collections import deque

import trio


class PassLimiter:
    """Release tasks in order of arrival, until their weights add up to `most` in one pass.

    Each pass releases at least one task, whatever its weight.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._waiting = deque[tuple[int, trio.Event]]()
        self._turning = False

    async def pass_through(self, weight: int) -> None:
        """Wait for a pass with capacity. This is a checkpoint only if the current pass has none."""
        if self._left > 0 and not self._waiting:
            self._left -= weight
            self._turn_soon()
            return
        turn = trio.Event()
        self._waiting.append((weight, turn))
        self._turn_soon()
        await turn.wait()

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            trio.lowlevel.current_trio_token().run_sync_soon(self._turn)  # in the next pass

    def _turn(self) -> None:
        self._turning = False
        self._left = self._most
        while self._waiting and self._left > 0:
            weight, turn = self._waiting.popleft()
            self._left -= weight
            turn.set()
        if self._waiting:
            self._turn_soon()
