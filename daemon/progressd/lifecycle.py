"""The lifecycle of the daemon: its signals, the time limits of a shutdown, and its announcements to all watchers."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager

import structlog
import trio

from progressd.core.errors import StoreFailed
from progressd.core.messages import Notice, ServerShutdown, ServerShutdownData, ServerStatus, ServerStatusData
from progressd.engine.health import StoreHealth
from progressd.http.streams import HTTPStreams
from progressd.ws.server import WebSocketServer

log = structlog.get_logger(__name__)


@contextmanager
def signals_received(numbers: Collection[int]) -> Iterator[AsyncIterator[int]]:
    """Receive signals inside the block. After the block, ignore them or, if it raised, restore their handlers.

    Signals are ignored because a process takes a moment to exit. A signal in that moment would kill it after a clean
    shutdown. Trio passes unreceived signals to the previous handlers.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        with trio.open_signal_receiver(*numbers) as signals:
            yield signals
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise


def ignore_alone() -> None:
    """Ignore the signals that this process was started to ignore, as under nohup(1), without passing that on.

    exec(2) keeps an ignored signal ignored, but resets a handler to the default. So pipelines receive these signals.
    """
    job_control = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    of_python = {signal.SIGPIPE, signal.SIGXFSZ}  # subprocess resets these
    for number in signal.valid_signals() - job_control - of_python:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


class ShutdownDeadline:
    """The time limits of a shutdown. Each signal that `run` receives ends one early: the current or the next."""

    def __init__(self, signals: AsyncIterator[int]) -> None:
        self._signals = signals
        self._current: trio.CancelScope | None = None
        self._early = 0  # signals received while no time limit ran, or after its end

    async def run(self) -> None:
        """Receive signals until cancelled."""
        async for number in self._signals:
            if number == signal.SIGHUP:
                log.warning("SIGHUP is ignored while the daemon stops")
            else:
                log.info("stopping at once", signal=signal.Signals(number).name)
                if self._current is None or self._current.cancel_called:
                    self._early += 1
                else:
                    self._current.cancel()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Cancel the block after some seconds, or at the next signal."""
        with trio.move_on_after(seconds) as self._current:
            if self._early:
                self._early -= 1
                self._current.cancel()
            try:
                yield
            finally:
                self._current = None


class Announcer:
    """Notify all watchers when the store fails or recovers, and when the daemon stops."""

    def __init__(self, websockets: WebSocketServer, streams: HTTPStreams) -> None:
        self._websockets = websockets
        self._streams = streams
        self._stopping = False

    async def run(self, health: StoreHealth, on_recovery: Callable[[], Awaitable[None]]) -> None:
        """Announce each failure of the store, and each recovery before `on_recovery` runs; until `stop`."""
        announced: StoreFailed | None = None
        while True:
            announced = await health.wait_changed(announced)
            if self._stopping:
                return
            if announced is not None:
                self._announce(ServerStatus(ServerStatusData("failing", str(announced))))
            else:
                self._announce(ServerStatus(ServerStatusData("healthy")), later=False)
                await on_recovery()

    def stop(self, seconds: float) -> None:
        """Announce that the daemon stops, and for how many seconds it waits for jobs."""
        self._stopping = True
        self._announce(ServerShutdown(ServerShutdownData("the daemon is stopping", round(seconds))))

    def _announce(self, message: Notice, *, later: bool = True) -> None:
        """Send a message to all watchers; `later`: also to new watchers, until the next message."""
        self._websockets.announce(message, later=later)
        self._streams.announce(message, later=later)
