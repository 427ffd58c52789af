"""Limit the work that clients of one kind cause in one pass of the event loop."""

from typing import Final

import trio

USUAL_PASS: Final = 0.008  # seconds


class PassLimiter:
    """Release tasks in order of arrival, until their weights add up to `most` in one pass.

    Each pass releases at least one task, whatever its weight. After a pass that took longer than USUAL_PASS, the
    weights may add up to proportionally more, but at most to `most_after_long_pass`. So a daemon with long passes still
    accepts many tasks.
    """

    def __init__(self, most: int, most_after_long_pass: int = 0) -> None:
        self._most = self._left = most
        self._most_after_long_pass = most_after_long_pass
        self._waiting: dict[trio.Event, int] = {}  # weights, in order of arrival
        self._turning = False
        self._pass_began = 0.0

    async def pass_through(self, weight: int) -> None:
        """Wait for a pass with capacity. This is a checkpoint only if the current pass has none."""
        if self._left > 0 and not self._waiting:
            self._left -= weight
            self._turn_soon()
            return
        turn = trio.Event()
        self._waiting[turn] = weight
        self._turn_soon()
        try:
            await turn.wait()
        finally:
            self._waiting.pop(turn, None)

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            self._pass_began = trio.current_time()
            trio.lowlevel.current_trio_token().run_sync_soon(self._turn)  # in the next pass

    def _turn(self) -> None:
        self._turning = False
        usual_passes = (trio.current_time() - self._pass_began) / USUAL_PASS
        self._left = max(self._most, min(int(self._most * usual_passes), self._most_after_long_pass))
        while self._waiting and self._left > 0:
            turn = next(iter(self._waiting))
            self._left -= self._waiting.pop(turn)
            turn.set()
        if self._waiting:
            self._turn_soon()
