"""Limit the WebSocket handshakes in one pass of the event loop, so that passes stay short.

A thousand handshakes in one pass would take 350 ms, and a message needs about six passes to reach its watchers. So each
pass starts one handshake for every 2 ms of the previous pass, within bounds. A daemon with little load stays
responsive, and a daemon with long passes still accepts many handshakes.
"""

from typing import Final

import trio

MIN_HANDSHAKES: Final = 4  # in a pass: 1.5 ms
MAX_HANDSHAKES: Final = 32


class HandshakeLimiter:
    """Release waiting tasks in order of arrival."""

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
        trio.lowlevel.current_trio_token().run_sync_soon(self._release)  # in the next pass

    def _release(self) -> None:
        before, self._turn_began = self._turn_began, trio.current_time()
        count = max(MIN_HANDSHAKES, min(500 * (self._turn_began - before), MAX_HANDSHAKES))
        self._waiting.unpark(count=int(count))
        self._scheduled = False
        if self._waiting:
            self._schedule()
