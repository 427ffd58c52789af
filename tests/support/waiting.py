"""Wait for conditions without an event: poll them for a limited time."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

# Seconds for each wait of a test: more than a busy machine needs, and less than most timeouts of the daemon (30 s).
PATIENCE = 25.0


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until the condition holds. Raises TooSlowError."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110, there is no event
            await trio.sleep(0.005)


async def settled() -> None:
    """Wait until all tasks wait."""
    await wait_all_tasks_blocked()


async def jumping(clock: MockClock, seconds: float, condition: Callable[[], object]) -> None:
    """Let the clock jump repeatedly until the condition holds. Fails after PATIENCE real seconds.

    One jump is not enough for a wait that starts after a thread has returned.
    """
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "this took too long"
        await wait_all_tasks_blocked()
        clock.jump(seconds)


async def pass_time(clock: MockClock) -> None:
    """Advance a stopped clock while all tasks are blocked."""
    while True:
        await wait_all_tasks_blocked(0.02)
        clock.jump(0.02)


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while its file is read
        return False


def open_files() -> set[str]:
    """Return the open files of this process."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until the condition holds, outside Trio."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < seconds, "this took too long"
        time.sleep(max(0.01, 0.1 * waited))  # there is no event, and each condition may be a request
