"""The event loop of a `Job`: asyncio or Trio, if either runs in this thread. Neither is imported before it is used."""

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from progressd.client.reporter import ReporterThread

if TYPE_CHECKING:
    import anyio


def trio_runs() -> bool:
    """Return whether this thread runs Trio."""
    with contextlib.suppress(KeyError, AttributeError):  # trio is not imported, or another thread is importing it
        return bool(sys.modules["trio"].lowlevel.in_trio_run())
    return False


def is_running() -> bool:
    """Return whether this thread runs an event loop, of asyncio or Trio."""
    with contextlib.suppress(KeyError, AttributeError, RuntimeError):
        return trio_runs() or sys.modules["asyncio"].get_running_loop() is not None
    return False


def call_soon_function() -> Callable[..., object]:
    """Return a thread-safe function that schedules a call in this event loop."""
    if trio_runs():
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    import asyncio

    return asyncio.get_running_loop().call_soon_threadsafe


async def wait_for_end(reporter: ReporterThread, acknowledged: "anyio.Event", hurry: float) -> None:
    """Wait until the end is acknowledged or the time is over; after a cancellation, at most `hurry` seconds."""
    import anyio

    async def wait() -> None:
        while (left := reporter.time_left()) > 0:
            with anyio.move_on_after(left):
                await acknowledged.wait()

    try:
        await wait()
    except GeneratorExit:  # the generator cannot await
        raise
    except BaseException:  # cancelled, now or earlier
        reporter.hurry(hurry)
        with anyio.CancelScope(shield=True):
            await wait()
        raise
