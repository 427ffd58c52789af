"""The heartbeat of all watchers: pings them at every interval, and gives up those without a sign of life.

One task does it for everyone: one for each, which mostly sleeps, is 3 KiB of memory a connection.
"""

from typing import Final

import trio

from progressd.broadcast.envelope import PING
from progressd.broadcast.outbox import SocketOutbox
from progressd.config.settings import Limits
from progressd.core.close_codes import TIMED_OUT

PING_BATCH: Final = 100  # pings in one turn of the event loop, 0.5 ms


class KeepAlive:
    """`add` and `remove` a connection, by its outbox, and say when something was `heard` of it."""

    def __init__(self, limits: Limits) -> None:
        self._interval = limits.heartbeat_interval
        self._patience = limits.connection_timeout
        # When each is due, soonest first: all have the same interval, so whoever is due anew goes to the end.
        self._pings: dict[SocketOutbox, float] = {}
        self._given_up: dict[SocketOutbox, float] = {}
        self._any = trio.Event()
        self._used = trio.Event()  # other limits

    def use(self, limits: Limits) -> None:
        """Limits that have been read again. Nobody is given up for them: a shorter silence counts from now on."""
        sooner = self._interval - limits.heartbeat_interval
        self._pings = {outbox: at - sooner for outbox, at in self._pings.items()}  # in the order in which they were
        if limits.connection_timeout != self._patience:
            self._given_up = dict.fromkeys(self._given_up, trio.current_time() + limits.connection_timeout)
        self._interval, self._patience = limits.heartbeat_interval, limits.connection_timeout
        self._used.set()

    def add(self, outbox: SocketOutbox) -> None:
        """From here on it is pinged, and may fall silent."""
        self._pings[outbox] = trio.current_time() + self._interval
        self._given_up[outbox] = trio.current_time() + self._patience
        self._any.set()

    def heard(self, outbox: SocketOutbox) -> None:
        """It has shown a sign of life."""
        if self._given_up.pop(outbox, None) is not None:
            self._given_up[outbox] = trio.current_time() + self._patience

    def remove(self, outbox: SocketOutbox) -> None:
        """It is over."""
        self._pings.pop(outbox, None)
        self._given_up.pop(outbox, None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while not self._pings:  # whoever came may have left before it was this task's turn
                self._any = trio.Event()
                await self._any.wait()
            self._used = trio.Event()
            with trio.move_on_at(min(next(iter(due.values())) for due in (self._pings, self._given_up) if due)):
                await self._used.wait()
            now = trio.current_time()
            for outbox in _due(self._given_up, now):
                self.remove(outbox)
                outbox.end(TIMED_OUT)
            for outbox in _due(self._pings, now):
                outbox.write(PING)
                del self._pings[outbox]
                self._pings[outbox] = now + self._interval


def _due(when: dict[SocketOutbox, float], now: float) -> list[SocketOutbox]:
    """Those that are due, as many as are seen to at once."""
    due: list[SocketOutbox] = []
    for outbox, at in when.items():
        if at > now or len(due) == PING_BATCH:
            break
        due.append(outbox)
    return due
