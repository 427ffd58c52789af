"""The daemon as its users run it: `progressd serve` in a process of its own.

with served_daemon(state_dir) as daemon:
    httpx.get(daemon.url + "/api/health")
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from support.waiting import PATIENCE


class ServedDaemon(NamedTuple):
    """Where it answers, and its process."""

    url: str
    process: subprocess.Popen[str]
    state_dir: Path

    @property
    def port(self) -> int:
        """The one after the address."""
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(PATIENCE)


@contextmanager
def served_daemon(
    state_dir: Path,
    environment: Mapping[str, str] | None = None,
    config: str | Path | None = None,
    port: int = 0,
    log: IO[str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[ServedDaemon]:
    """A daemon over a state directory, on a port or any free one; stopped by SIGTERM unless it has ended itself.

    `config`: what its config file has in it, or which it is.
    `log`: where its log goes, instead of that of the tests. `prefix`: a command that runs the one that follows.
    """
    command = [*prefix, sys.executable, "-m", "progressd", "serve", "--port", str(port), "--state-dir", str(state_dir)]
    if isinstance(config, str):
        path = state_dir.with_suffix(".toml")
        path.write_text(config)
        config = path
    if config is not None:
        command += ["--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), line
            yield ServedDaemon(line.removeprefix("listening on ").strip(), process, state_dir)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def backup(state_dir: Path, target: Path) -> None:
    """Back the database up."""
    command = [sys.executable, "-m", "progressd", "backup", "--state-dir", str(state_dir), str(target)]
    subprocess.run(command, check=True, capture_output=True)


def restore(state_dir: Path, source: Path) -> None:
    """Put a backup in the place of the database, as docs/operations.md says, while no daemon runs."""
    for name in ("progressd.db", "progressd.db-wal", "progressd.db-shm"):
        (state_dir / name).unlink(missing_ok=True)
    shutil.copy(source, state_dir / "progressd.db")
