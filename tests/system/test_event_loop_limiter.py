"""How many tasks a limiter lets through in one pass of the event loop."""

import pytest
import trio
from progressd.system.event_loop_limiter import EventLoopLimiter
from support.passes import counted
from trio.testing import MockClock


def work() -> None:
    """What a task does once it is through."""


@pytest.mark.parametrize(
    ("weight", "pass_seconds", "per_pass"),
    [(1, 0, 10), (4, 0, 3), (10, 0, 1), (1000, 0, 1), (1, 0.02, 25), (1, 1, 50)],
)
async def test_weights_and_long_passes_limit_the_tasks(
    mock_clock: MockClock, weight: int, pass_seconds: float, per_pass: int
) -> None:
    limiter, through = EventLoopLimiter(10, 50), list[int]()

    async def go(number: int) -> None:
        await limiter.pass_through(weight)
        work()
        through.append(number)

    with counted(work) as calls:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(go, number)
            while len(through) < 200:
                await trio.lowlevel.checkpoint()
                mock_clock.jump(pass_seconds)
    assert sorted(through) == list(range(200))
    assert per_pass <= calls.most <= 2 * per_pass  # the limiter may be called between two tasks of one pass


async def test_cancelled_tasks_delay_no_other_task() -> None:
    limiter, through, passes = EventLoopLimiter(1), list[int](), 0

    async def go(number: int) -> None:
        with trio.CancelScope() as scope:
            if 0 < number <= 100:
                scope.cancel()
            await limiter.pass_through(1)
            through.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(110):
            nursery.start_soon(go, number)
        while len(through) < 10:
            await trio.lowlevel.checkpoint()
            passes += 1
    assert passes < 50
