"""Keep-alive for all WebSockets: ping clients at every interval, and time out clients that do not respond.

One task serves all connections: a task per connection would take 3 KiB each.
"""

from typing import Final

import trio

from progressd.broadcast.envelope import PING
from progressd.broadcast.outbox import SocketOutbox
from progressd.config.settings import Limits
from progressd.core.close_codes import TIMED_OUT
from progressd.system.condition import Condition

PING_BATCH: Final = 100  # pings in one pass of the event loop, 0.5 ms


class KeepAlive:
    """Ping and time out connections. Each is identified by its outbox."""

    def __init__(self, limits: Limits) -> None:
        self._interval = limits.heartbeat_interval
        self._timeout = limits.connection_timeout
        # Times at which pings and timeouts are due, soonest first. Intervals are equal, so new entries are appended.
        self._pings: dict[SocketOutbox, float] = {}
        self._timeouts: dict[SocketOutbox, float] = {}
        self._added = Condition()
        self._reloaded = False
        self._limits_changed = Condition()

    def apply_settings(self, limits: Limits) -> None:
        """Apply reloaded limits. A shorter timeout counts from now on."""
        sooner = self._interval - limits.heartbeat_interval
        self._pings = {outbox: at - sooner for outbox, at in self._pings.items()}  # the order stays the same
        if limits.connection_timeout != self._timeout:
            self._timeouts = dict.fromkeys(self._timeouts, trio.current_time() + limits.connection_timeout)
        self._interval, self._timeout = limits.heartbeat_interval, limits.connection_timeout
        self._reloaded = True
        self._limits_changed.notify()

    def add(self, outbox: SocketOutbox) -> None:
        """Start pinging a connection."""
        self._pings[outbox] = trio.current_time() + self._interval
        self._timeouts[outbox] = trio.current_time() + self._timeout
        self._added.notify()

    def heard(self, outbox: SocketOutbox) -> None:
        """Record a sign of life."""
        if self._timeouts.pop(outbox, None) is not None:
            self._timeouts[outbox] = trio.current_time() + self._timeout

    def remove(self, outbox: SocketOutbox) -> None:
        """Stop pinging a connection."""
        self._pings.pop(outbox, None)
        self._timeouts.pop(outbox, None)

    async def run(self) -> None:
        """Ping and time out until cancelled."""
        while True:
            await self._added.wait_for(lambda: self._pings)
            self._reloaded = False
            with trio.move_on_at(min(next(iter(due.values())) for due in (self._pings, self._timeouts) if due)):
                await self._limits_changed.wait_for(lambda: self._reloaded)
            now = trio.current_time()
            for outbox in _due(self._timeouts, now):
                self.remove(outbox)
                outbox.end(TIMED_OUT)
            for outbox in _due(self._pings, now):
                outbox.write(PING)
                del self._pings[outbox]
                self._pings[outbox] = now + self._interval


def _due(when: dict[SocketOutbox, float], now: float) -> list[SocketOutbox]:
    """Return the next batch of due connections."""
    due: list[SocketOutbox] = []
    for outbox, at in when.items():
        if at > now or len(due) == PING_BATCH:
            break
        due.append(outbox)
    return due
