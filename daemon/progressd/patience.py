"""The patience of a daemon that stops: how long it waits for what, unless another signal says that it is to hurry."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import structlog
import trio

log = structlog.get_logger(__name__)


class Patience:
    """`run` takes the signals that come once the daemon stops; each cuts short one wait, this one or the next.

    It goes on for as long as the process hears signals: one that is left is delivered again once nobody does, and ends
    a daemon with the status of a killed one that has stopped in order.
    """

    def __init__(self, signals: AsyncIterator[int]) -> None:
        self._signals = signals
        self._waiting: trio.CancelScope | None = None
        self._early = 0  # signals that came while nothing was waited for, or what was had been cut short already

    async def run(self) -> None:
        """Until cancelled."""
        async for number in self._signals:
            if number == signal.SIGHUP:
                log.warning("settings are not read again while the daemon stops")
            else:
                log.info("stopping at once", signal=signal.Signals(number).name)
                if self._waiting is None or self._waiting.cancel_called:
                    self._early += 1
                else:
                    self._waiting.cancel()

    @contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """What is within this takes so many seconds at most, and ends with the next signal that no other wait had."""
        with trio.move_on_after(seconds) as self._waiting:
            if self._early:
                self._early -= 1
                self._waiting.cancel()
            try:
                yield
            finally:
                self._waiting = None
