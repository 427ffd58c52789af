"""The protocols of systemd: sd_notify(3), sd_listen_fds(3) and the watchdog. Without systemd they do nothing."""

import os
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Final

import structlog
import trio

from progressd.core.errors import Unavailable

FIRST_DESCRIPTOR: Final = 3
PINGS_PER_TIMEOUT: Final = 6
CHECK_TIMEOUT: Final = 1 / 3  # share of the watchdog's timeout
STATUS_INTERVAL: Final = 1.0  # seconds

Check = Callable[[], Awaitable[None]]
log = structlog.get_logger(__name__)


class Notifier:
    """Notify systemd. The address is removed from the environment, so that children cannot use it.

    The socket stays open, because notifications must work even without free descriptors.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._failing = False
        if address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def __call__(self, *assignments: str) -> bool:
        """Send assignments such as `READY=1` without blocking. Return whether systemd has received them."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            if not self._failing:  # log once, not for each ping
                log.warning("cannot notify systemd", error=str(error))
            self._failing = True
        else:
            self._failing = False
        return not self._failing


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets from systemd, non-blocking and not inheritable."""
    count, pid = environ.pop("LISTEN_FDS", "0"), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return []
    sockets = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        listening = socket.socket(fileno=descriptor)
        listening.setblocking(False)
        sockets.append(listening)
    return sockets


def watchdog_seconds(environ: MutableMapping[str, str]) -> float | None:
    """Return the timeout of the watchdog, or None if it is off (sd_watchdog_enabled(3))."""
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    return int(microseconds) / 1e6 if microseconds and pid == str(os.getpid()) else None


async def run_status(notify: Notifier, describe: Callable[[], str]) -> None:
    """Send changes of the status for `systemctl status`, at most once a second."""
    sent = ""
    while True:
        status = describe()
        if status != sent and notify(f"STATUS={status}"):
            sent = status
        await trio.sleep(STATUS_INTERVAL)


class Watchdog:
    """Ping systemd while all checks return in time. The key of a check is logged as the reason if it does not return.

    A check that raises Unavailable counts as returned: a restart does not help against a full disk.
    """

    def __init__(self, notify: Notifier, seconds: float, checks: Mapping[str, Check]) -> None:
        self._notify = notify
        self._period = seconds / PINGS_PER_TIMEOUT
        self._check_timeout = seconds * CHECK_TIMEOUT
        self._checks = checks
        self._running: dict[str, float] = {}  # start times of the checks
        self._stuck: set[str] = set()

    async def run(self) -> None:
        """Send pings until cancelled."""
        async with trio.open_nursery() as nursery:
            for reason, check in self._checks.items():
                nursery.start_soon(self._repeat, reason, check)
            while True:
                self._ping()
                await trio.sleep(self._period)

    def _ping(self) -> None:
        now = trio.current_time()
        late = {reason for reason, since in self._running.items() if now - since > self._check_timeout}
        for reason in sorted(late - self._stuck):
            log.critical("watchdog ping withheld", reason=reason, seconds=round(self._check_timeout, 1))
        for reason in sorted(self._stuck - late):
            log.warning("watchdog ping resumed", resolved=reason)
        self._stuck = late
        if not late:
            self._notify("WATCHDOG=1")

    async def _repeat(self, reason: str, check: Check) -> None:
        while True:
            self._running[reason] = trio.current_time()
            try:
                await check()
            except Unavailable as error:
                log.debug("watchdog check returned an error", error=str(error))
            del self._running[reason]
            await trio.sleep(self._period)
