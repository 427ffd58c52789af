"""Run a command as PID 1 of a new PID namespace, as in a container. CI requires it, like the systemd tests."""

import os
import subprocess

import pytest

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
