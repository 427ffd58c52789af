"""Run a command: in the process of the tests, which is faster, or in its own."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result
from progressd.cli.main import main

from support.waiting import PATIENCE

PROGRESSD = [sys.executable, "-m", "progressd"]


def run(*arguments: object, **environ: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="progressd", env=environ)


def program(*arguments: str | Path, given: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process, with any exit status. `given` is its input."""
    return subprocess.run(
        [*PROGRESSD, *arguments],
        input=given,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
