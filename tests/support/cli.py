"""Run a command: in the process of the tests, which is faster, or in its own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the block, and kill it at the end: a failed test must not wait for it."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()
