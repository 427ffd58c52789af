"""A limit on the WebSocket handshakes in one turn of the event loop, so that turns stay short.

A thousand handshakes in one turn would take 350 ms, and a message needs about six turns to reach its watchers. So each
turn starts one handshake for every 2 ms that the turn before took, within bounds. A daemon with little else to do stays
responsive, and one with long turns still admits many.
"""

from typing import Final

import trio

MIN_HANDSHAKES: Final = 4  # in a turn: 1.5 ms
MAX_HANDSHAKES: Final = 32


class HandshakeLimiter:
    """Releases waiting tasks in the order in which they came."""

    def __init__(self) -> None:
        self._waiting = trio.lowlevel.ParkingLot()
        self._scheduled = False
        self._turn_began = 0.0

    async def wait(self) -> None:
        """Wait until this task may start its handshake."""
        if not self._scheduled:
            self._turn_began = trio.current_time()
            self._schedule()
        await self._waiting.park()

    def _schedule(self) -> None:
        self._scheduled = True
        trio.lowlevel.current_trio_token().run_sync_soon(self._release)  # in the next turn

    def _release(self) -> None:
        before, self._turn_began = self._turn_began, trio.current_time()
        count = max(MIN_HANDSHAKES, min(500 * (self._turn_began - before), MAX_HANDSHAKES))
        self._waiting.unpark(count=int(count))
        self._scheduled = False
        if self._waiting:
            self._schedule()
