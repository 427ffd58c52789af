"""Run a command as PID 1 of a new PID namespace, as in a container. CI requires it, like the systemd tests."""

import os
import subprocess
from pathlib import Path

import pytest

from support.waiting import until

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]


def as_init(*command: str) -> list[str]:
    """Return the command line. Skip the test if namespaces are not permitted."""
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("SYSTEMD_TESTS") == "required":
            raise
        pytest.skip(f"cannot create a PID namespace: {error}")
    return [*UNSHARE, *command]


def init_of(process: subprocess.Popen[str]) -> int:
    """Return the id of PID 1 outside the namespace."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(children.read_text)
    return int(children.read_text())
