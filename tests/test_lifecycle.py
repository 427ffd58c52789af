"""Which waits signals cut short, of a daemon that stops."""

import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from progressd.lifecycle import ShutdownDeadline, hearing
from support.waiting import PATIENCE
from trio.testing import MockClock, wait_all_tasks_blocked

INT, HUP = signal.SIGINT, signal.SIGHUP


class Stopping:
    """What stops, and what sends it signals."""

    def __init__(self, patience: ShutdownDeadline, signals: trio.MemorySendChannel[int]) -> None:
        self.patience = patience
        self._signals = signals

    async def hear(self, *numbers: int) -> None:
        for number in numbers:
            self._signals.send_nowait(number)
        await wait_all_tasks_blocked()

    async def waits(self, seconds: float, *numbers: int) -> float:
        """How long a wait takes in which these signals come, one a second."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            with self.patience.of(seconds):
                nursery.start_soon(self._one_a_second, numbers)
                await trio.sleep_forever()
        return trio.current_time() - began

    async def _one_a_second(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            await trio.sleep(1)
            await self.hear(number)


@asynccontextmanager
async def stopping() -> AsyncIterator[Stopping]:
    send, signals = trio.open_memory_channel[int](10)
    patience = ShutdownDeadline(signals)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)
        yield Stopping(patience, send)
        nursery.cancel_scope.cancel()
    send.close()
    signals.close()


async def test_a_signal_cuts_short_the_wait_in_which_it_comes(autojump_clock: MockClock) -> None:
    async with stopping() as stops:
        assert await stops.waits(100, INT) == 1
        assert await stops.waits(100) == 100
        assert await stops.waits(100, HUP, INT) == 2


@pytest.mark.parametrize(("numbers", "seconds"), [([INT], [0, 9, 9]), ([INT, INT], [0, 0, 9]), ([HUP], [9, 9, 9])])
async def test_a_signal_between_two_waits_is_one_for_the_next(
    autojump_clock: MockClock, numbers: list[int], seconds: list[float]
) -> None:
    async with stopping() as stops:
        assert await stops.waits(100, INT) == 1
        await stops.hear(*numbers)
        assert [await stops.waits(9) for _ in seconds] == seconds


async def test_a_second_signal_before_the_wait_has_ended_is_one_for_the_next(autojump_clock: MockClock) -> None:
    async with stopping() as stops:
        with stops.patience.of(100):
            with trio.CancelScope(shield=True):
                await stops.hear(INT, INT)
            await trio.sleep_forever()
        assert [await stops.waits(9) for _ in range(2)] == [0, 9]
        with stops.patience.of(1), trio.CancelScope(shield=True):
            await trio.sleep(2)
            await stops.hear(INT)
        assert [await stops.waits(9) for _ in range(2)] == [0, 9]


class Raising(list[int]):
    """Signals, of which each comes whenever somebody looks through them a second time."""

    looks = 0

    def __iter__(self) -> Iterator[int]:
        self.looks += 1
        for number in super().__iter__():
            if self.looks == 2:
                signal.raise_signal(number)
            yield number


@pytest.fixture
def as_before() -> Iterator[None]:
    before = signal.getsignal(HUP)
    yield
    signal.signal(HUP, before)


@pytest.mark.usefixtures("as_before")
async def test_what_comes_before_anybody_hears_is_heard_and_what_nobody_took_changes_nothing() -> None:
    numbers = Raising([HUP])
    with trio.fail_after(PATIENCE), hearing(numbers) as signals:
        assert numbers.looks == 2
        assert await anext(signals) == HUP
        signal.raise_signal(HUP)
    signal.raise_signal(HUP)


async def test_where_hearing_failed_signals_are_as_they_were() -> None:
    before = signal.getsignal(HUP)
    with pytest.raises(ValueError, match="this"), hearing([HUP]):
        raise ValueError("this")
    assert signal.getsignal(HUP) is before
