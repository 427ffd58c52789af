"""A command as PID 1 of a PID namespace of its own, as in a container. CI requires it, as it does the systemd tests."""

import os
import subprocess
from pathlib import Path

import pytest

from support.waiting import until

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]


def as_init(*command: str) -> list[str]:
    """Return the command line; it dies with its own process. Skips the test where namespaces are forbidden."""
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("SYSTEMD_TESTS") == "required":
            raise
        pytest.skip(f"no PID namespace can be made: {error}")
    return [*UNSHARE, *command]


def init_of(process: subprocess.Popen[str]) -> int:
    """Return the id of PID 1, as seen from outside."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(children.read_text)
    return int(children.read_text())
