"""How many tasks a limiter lets through in one pass of the event loop."""

import pytest
import trio
from progressd.system.pass_limiter import PassLimiter
from support.passes import counted


def work() -> None:
    """What a task does once it is through."""


@pytest.mark.parametrize(("weight", "most"), [(1, 10), (4, 3), (10, 1), (1000, 1)])
async def test_tasks_go_through_until_their_weights_fill_a_pass(weight: int, most: int) -> None:
    limiter, through = PassLimiter(10), list[int]()

    async def go(number: int) -> None:
        await limiter.pass_through(weight)
        work()
        through.append(number)

    with counted(work) as calls:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(go, number)
    assert sorted(through) == list(range(100))
    assert most <= calls.most <= 2 * most  # the limiter may be called between two tasks of one pass


async def test_those_who_give_up_hold_up_nobody() -> None:
    limiter, through = PassLimiter(1), list[int]()

    async def go(number: int) -> None:
        with trio.CancelScope() as scope:
            if number % 2:
                scope.cancel()
            await limiter.pass_through(1)
            through.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(go, number)
    assert {0, 2, 4, 6, 8} <= set(through)
