"""Run a command that waits in Trio until it ends or a signal arrives."""

import signal
from collections.abc import Awaitable, Callable

import trio

from progressd.client.exception_groups import unwrapped


async def until_interrupted(run: Callable[[], Awaitable[int]]) -> int:
    """Return the exit status of `run`, or of a signal that ends it."""
    status = 0
    with unwrapped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                nonlocal status
                status = 128 + await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            status = await run()
            nursery.cancel_scope.cancel()
    return status
