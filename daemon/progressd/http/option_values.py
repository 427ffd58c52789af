"""The values that a server has for an option of a pipeline, such as the installed languages of a program."""

import sys
from typing import Final

import structlog
import trio

from progressd.core.pipeline import Option

TIMEOUT: Final = 5.0  # seconds for the command
FRESH: Final = 60.0  # seconds until the command runs again
MOST: Final = 1000  # values

log = structlog.get_logger(__name__)

_known: dict[tuple[str, ...], tuple[float, list[str]]] = {}


async def values_of(option: Option) -> list[str]:
    """Return the values that `values_command` prints, none if it fails. They are cached for a minute."""
    if not option.values_command:
        return []
    command = tuple(part.replace("{python}", sys.executable) for part in option.values_command)
    at, values = _known.get(command, (-FRESH, []))
    if trio.current_time() - at >= FRESH:
        values = await _printed(command)
        _known[command] = trio.current_time(), values
    return values


async def _printed(command: tuple[str, ...]) -> list[str]:
    try:
        with trio.fail_after(TIMEOUT):
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    except (OSError, trio.TooSlowError) as error:
        log.warning("values_command failed", command=command, error=str(error) or "too slow")
        return []
    if done.returncode:
        log.warning("values_command failed", command=command, exit_status=done.returncode)
        return []
    return done.stdout.decode(errors="replace").splitlines()[:MOST]
