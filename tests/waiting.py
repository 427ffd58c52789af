"""Waiting for what no event tells: a condition is looked at again and again, for a bounded time."""

from collections.abc import Callable

import trio


async def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until the condition holds. Raises TooSlowError when it does not in time."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)
