"""The patience of a daemon that stops: how long it waits for what, unless another signal says that it is to hurry."""

import signal
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager

import structlog
import trio

log = structlog.get_logger(__name__)


@contextmanager
def hearing(numbers: Collection[int]) -> Iterator[AsyncIterator[int]]:
    """Within this, signals are heard; after it they are ignored, or, where it has failed, as they were before.

    A process takes a moment to end, in which one more signal would make of it a killed one that has stopped in order.
    """
    early = list[int]()
    # Trio gives those that nobody took to what was there before it, which therefore must not be the default.
    before = {number: signal.signal(number, lambda number, _: early.append(number)) for number in numbers}
    try:
        with trio.open_signal_receiver(*numbers) as signals:
            for number in early:
                signal.raise_signal(number)
            yield signals
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


class ShutdownDeadline:
    """`run` takes the signals that come once the daemon stops; each cuts short one wait, this one or the next."""

    def __init__(self, signals: AsyncIterator[int]) -> None:
        self._signals = signals
        self._waiting: trio.CancelScope | None = None
        self._early = 0  # signals that came while nothing was waited for, or what was had been cut short already

    async def run(self) -> None:
        """Until cancelled."""
        async for number in self._signals:
            if number == signal.SIGHUP:
                log.warning("SIGHUP changes nothing while the daemon stops")
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
