"""Systemd's watchdog, fed from the event loop only while the daemon does its work; the log says what has stopped.

A check is something that comes back while its part works. One that is refused an answer comes back as well: a full disk
is no reason to be killed, for it would still be full afterwards.
"""

import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from progressd.core.errors import Unavailable
from progressd.system.systemd import Notifier

FEEDS_PER_TIMEOUT: Final = 6  # times it is fed in the time after which it bites
CHECK_TIMEOUT: Final = 1 / 3  # of that time, for a check to come back, and for the event loop to go round
STATUS_INTERVAL: Final = 1.0  # seconds

Check = Callable[[], Awaitable[None]]
log = structlog.get_logger(__name__)


def watchdog_seconds(environ: MutableMapping[str, str]) -> float | None:
    """After how long without a sign of life systemd kills this process, None: never (sd_watchdog_enabled(3))."""
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    return int(microseconds) / 1e6 if microseconds and pid == str(os.getpid()) else None


async def run_status(notify: Notifier, describe: Callable[[], str]) -> None:
    """Tell systemd what the daemon is at, for `systemctl status`, when that has changed; at most once a second."""
    told = ""
    while True:
        status = describe()
        if notify(*([f"STATUS={status}"] if status != told else [])):  # also for what it has not taken before
            told = status
        await trio.sleep(STATUS_INTERVAL)


class Watchdog:
    """`run` feeds it. `checks` are by the sentence that tells what is wrong while one does not come back."""

    def __init__(self, notify: Notifier, seconds: float, checks: Mapping[str, Check]) -> None:
        self._notify = notify
        self._period = seconds / FEEDS_PER_TIMEOUT
        self._patience = seconds * CHECK_TIMEOUT
        self._checks = checks
        self._asked: dict[str, float] = {}  # since when a check has not come back
        self._stuck: set[str] = set()
        self._rounds = 0  # of the event loop

    async def run(self) -> None:
        """Feed it until cancelled."""
        with self._watched_loop():
            async with trio.open_nursery() as nursery:
                for sentence, check in self._checks.items():
                    nursery.start_soon(self._repeat, sentence, check)
                while True:
                    self._rounds += 1
                    self._feed()
                    await trio.sleep(self._period)

    def _feed(self) -> None:
        now = trio.current_time()
        late = {sentence for sentence, since in self._asked.items() if now - since > self._patience}
        for sentence in sorted(late - self._stuck):
            log.critical(f"{sentence}, so the watchdog is not fed", seconds=round(self._patience, 1))
        for sentence in sorted(self._stuck - late):
            log.warning("it is over that " + sentence)
        self._stuck = late
        if not late:
            self._notify("WATCHDOG=1")

    async def _repeat(self, sentence: str, check: Check) -> None:
        while True:
            self._asked[sentence] = trio.current_time()
            try:
                await check()
            except Unavailable as error:
                log.debug("a part of the daemon works, but refuses", error=str(error))
            del self._asked[sentence]
            await trio.sleep(self._period)

    @contextmanager
    def _watched_loop(self) -> Iterator[None]:
        """A stuck event loop cannot say so itself: within this, a thread does."""
        over = threading.Event()
        loop = threading.get_ident()

        def watch() -> None:
            told = seen = -1
            while not over.wait(self._patience):
                if self._rounds == seen != told:
                    place = "".join(traceback.format_stack(sys._current_frames()[loop])[-1:]).strip()
                    log.critical("the event loop is stuck, so the watchdog is not fed", place=" ".join(place.split()))
                    told = seen
                seen = self._rounds

        thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
