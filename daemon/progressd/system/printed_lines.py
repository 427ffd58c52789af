"""Run a program that prints a short list, and remember the list for a minute."""

import subprocess
from collections.abc import Sequence
from typing import Final

import structlog
import trio

from progressd.system.reaper import reaper

TIMEOUT: Final = 10.0  # seconds
MAX_AGE: Final = 60.0  # seconds
MAX_BYTES: Final = 65536  # of the output

log = structlog.get_logger(__name__)


class PrintedLines:
    """The lines that programs print. A program that fails prints none."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[float, list[str]]] = {}
        self._running = trio.Lock()

    async def of(self, command: Sequence[str]) -> list[str]:
        """Return the lines that a program prints, or printed within the last minute."""
        key = tuple(command)
        async with self._running:
            then, lines = self._known.get(key, (-MAX_AGE, []))
            if trio.current_time() - then >= MAX_AGE:
                lines = await _run(key)
                self._known[key] = trio.current_time(), lines
        return lines


async def _run(command: tuple[str, ...]) -> list[str]:
    try:
        process = await reaper.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        log.warning("cannot list the values of an option", command=command[0], error=str(error))
        return []
    output, status = b"", None
    try:
        with trio.move_on_after(TIMEOUT):
            assert process.stdout is not None
            async for piece in process.stdout:
                output = (output + piece)[:MAX_BYTES]
            status = await reaper.exit_status(process)
    finally:
        if status is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await reaper.exit_status(process)
        assert process.stdout is not None
        await process.stdout.aclose()
    if status:
        log.warning("cannot list the values of an option", command=command[0], status=status)
    lines = output.decode(errors="replace").splitlines() if status == 0 else []
    return [line for line in lines if line]
