"""Waiting for what no event tells: a condition is looked at again and again, for a bounded time."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

# Seconds that any single wait of a test may take: more than a busy machine needs, and less than what a daemon waits for
# by itself, which is 30 s or longer in most cases.
PATIENCE = 25.0


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until the condition holds. Raises TooSlowError when it does not in time."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110, nothing tells when it does
            await trio.sleep(0.005)


async def jumping(clock: MockClock, seconds: float, condition: Callable[[], object]) -> None:
    """Have time jump, again and again, until the condition holds. Fails when it does not in time that passes by itself.

    Once would not do for what begins to wait when a thread has come back.
    """
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "this took too long"
        await wait_all_tasks_blocked()
        clock.jump(seconds)


async def pass_time(clock: MockClock) -> None:
    """Have time go on as usual, for a clock that stands still by itself, but only while there is nothing to do."""
    while True:
        await wait_all_tasks_blocked(0.02)
        clock.jump(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may go while its file is read
        return False


def open_files() -> set[str]:
    """What this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """The same outside of Trio, such as for what a process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.01)  # nothing tells when
