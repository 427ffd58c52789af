"""A turnstile: lets so many tasks through in one turn of the event loop that the turn stays short for all others.

When a thousand watchers come at once, their handshakes would all be one turn of 350 ms, and a message takes about six
turns to its watchers. So handshakes begin a few a turn: one for every 2 ms that the turn before it took, within bounds.
Then a daemon with little else to do stays quick for those who are there, and one with long turns still lets many in.
"""

from typing import Final

import trio

MIN_HANDSHAKES: Final = 4  # a turn, 1.5 ms of handshakes
MAX_HANDSHAKES: Final = 32


class HandshakeLimiter:
    """First come, first served."""

    def __init__(self) -> None:
        self._waiting = trio.lowlevel.ParkingLot()
        self._turning = False
        self._turned = 0.0  # when the turn before this one began

    async def pass_through(self) -> None:
        """Wait for one's turn."""
        if not self._turning:
            self._turned = trio.current_time()
            self._turn_soon()
        await self._waiting.park()

    def _turn_soon(self) -> None:
        self._turning = True
        trio.lowlevel.current_trio_token().run_sync_soon(self._turn)  # once, in the next turn of the loop

    def _turn(self) -> None:
        before, self._turned = self._turned, trio.current_time()
        self._waiting.unpark(count=int(max(MIN_HANDSHAKES, min(500 * (self._turned - before), MAX_HANDSHAKES))))
        self._turning = False
        if self._waiting:
            self._turn_soon()
