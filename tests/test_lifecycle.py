"""Signals during a shutdown, and announcements to all watchers."""

import json
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.auth.authenticator import ANONYMOUS, Client
from progressd.broadcast.broadcaster import ReaderOutbox
from progressd.core.errors import StoreFailed
from progressd.http.streams import HTTPStreams
from progressd.lifecycle import Announcer, ShutdownDeadline, signals_received
from progressd.ws.server import WebSocketServer
from support.daemon import running_daemon
from support.waiting import PATIENCE
from trio.testing import MockClock, wait_all_tasks_blocked

INT, HUP = signal.SIGINT, signal.SIGHUP


class Stopping:
    """A shutdown, and the sender of its signals."""

    def __init__(self, deadline: ShutdownDeadline, signals: trio.MemorySendChannel[int]) -> None:
        self.deadline = deadline
        self._signals = signals

    async def signal(self, *numbers: int) -> None:
        for number in numbers:
            self._signals.send_nowait(number)
        await wait_all_tasks_blocked()

    async def waits(self, seconds: float, *numbers: int) -> float:
        """Return how long a wait takes in which these signals come, one a second."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            with self.deadline.limit(seconds):
                nursery.start_soon(self._one_a_second, numbers)
                await trio.sleep_forever()
        return trio.current_time() - began

    async def _one_a_second(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            await trio.sleep(1)
            await self.signal(number)


@asynccontextmanager
async def stopping() -> AsyncIterator[Stopping]:
    send, signals = trio.open_memory_channel[int](10)
    deadline = ShutdownDeadline(signals)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadline.run)
        yield Stopping(deadline, send)
        nursery.cancel_scope.cancel()
    send.close()
    signals.close()


async def test_a_signal_ends_the_current_time_limit(autojump_clock: MockClock) -> None:
    async with stopping() as stops:
        assert await stops.waits(100, INT) == 1
        assert await stops.waits(100) == 100
        assert await stops.waits(100, HUP, INT) == 2


@pytest.mark.parametrize(("numbers", "seconds"), [([INT], [0, 9, 9]), ([INT, INT], [0, 0, 9]), ([HUP], [9, 9, 9])])
async def test_a_signal_between_two_limits_ends_the_next(
    autojump_clock: MockClock, numbers: list[int], seconds: list[float]
) -> None:
    async with stopping() as stops:
        assert await stops.waits(100, INT) == 1
        await stops.signal(*numbers)
        assert [await stops.waits(9) for _ in seconds] == seconds


async def test_a_second_signal_ends_the_next_limit(autojump_clock: MockClock) -> None:
    async with stopping() as stops:
        with stops.deadline.limit(100):
            with trio.CancelScope(shield=True):
                await stops.signal(INT, INT)
            await trio.sleep_forever()
        assert [await stops.waits(9) for _ in range(2)] == [0, 9]
        with stops.deadline.limit(1), trio.CancelScope(shield=True):
            await trio.sleep(2)
            await stops.signal(INT)
        assert [await stops.waits(9) for _ in range(2)] == [0, 9]


@pytest.fixture
def as_before() -> Iterator[None]:
    before = signal.getsignal(HUP)
    yield
    signal.signal(HUP, before)


@pytest.mark.usefixtures("as_before")
async def test_late_signals_are_ignored() -> None:
    with trio.fail_after(PATIENCE), signals_received([HUP]) as signals:
        signal.raise_signal(HUP)
        assert await anext(signals) == HUP
        signal.raise_signal(HUP)
    signal.raise_signal(HUP)


async def test_after_a_failure_signal_handlers_are_restored() -> None:
    before = signal.getsignal(HUP)
    with pytest.raises(ValueError, match="this"), signals_received([HUP]):
        raise ValueError("this")
    assert signal.getsignal(HUP) is before


async def test_a_failure_during_recovery_is_announced(tmp_path: Path) -> None:
    recovering, recovered = trio.Event(), trio.Event()

    async def on_recovery() -> None:
        recovering.set()
        await recovered.wait()

    async with running_daemon(tmp_path) as running, trio.open_nursery() as nursery:
        daemon, outbox = running.daemon, ReaderOutbox(10_000)
        streams, health = HTTPStreams(daemon.connection_limiter), daemon.health
        websockets = WebSocketServer(
            daemon.settings, daemon.authenticator, daemon.rate_limits, daemon.connection_limiter, daemon.engine
        )

        async def announced() -> Any:
            with trio.fail_after(PATIENCE):
                await outbox.wait()
            [item] = outbox.take(1)
            return json.loads(item.event.partition(b"data: ")[2])["data"]

        with streams.opened(outbox, Client("198.51.100.7", ANONYMOUS)):
            nursery.start_soon(Announcer(websockets, streams).run, health, on_recovery)
            health.failed(StoreFailed("the disk is full"))
            assert await announced() == {"status": "failing", "error": "the disk is full"}
            health.recovered()
            assert (await announced())["status"] == "healthy"
            await recovering.wait()
            health.failed(StoreFailed("the disk fails"))
            recovered.set()
            assert await announced() == {"status": "failing", "error": "the disk fails"}
        nursery.cancel_scope.cancel()
