"""A daemon as users run it: `progressd serve` in its own process.

with served_daemon(state_dir) as daemon:
    daemon.request("GET", "/api/health")
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx

from support.submitting import PDF
from support.waiting import PATIENCE, until


class ServedDaemon(NamedTuple):
    """A running daemon, and an HTTP client for it."""

    url: str
    process: subprocess.Popen[Any]
    state_dir: Path

    @property
    def port(self) -> int:
        """Return its TCP port."""
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send an HTTP request. `verify`: without the certificates of this system, which take 15 ms to load."""
        return httpx.request(method, self.url + path, timeout=PATIENCE, trust_env=False, verify=False, **options)

    def submit(self, pipeline: str, content: bytes = PDF, **options: object) -> str:
        """Submit a file to a pipeline, and return the id of its job."""
        form = {"files": {"file": ("book.pdf", content)}, "data": {"options": json.dumps(options)}}
        response = self.request("POST", "/api/convert", params={"pipeline": pipeline}, **form)
        assert response.status_code == 202, response.text
        return str(response.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job; empty if the daemon does not know it."""
        response = self.request("GET", f"/api/jobs/{job_id}")
        job: dict[str, Any] = response.json() if response.is_success else {}
        return job

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait for the end of a job, and return the job."""
        until(lambda: "completed_at" in self.job(job_id))
        return self.job(job_id)

    def completed(self, job_id: str) -> dict[str, Any]:
        """Wait for the end of a job, which must succeed, and return the job."""
        job = self.ended(job_id)
        assert job["status"] == "completed", job
        return job


@contextmanager
def served_daemon(
    state_dir: Path,
    environment: Mapping[str, str] | None = None,
    config: str | Path | None = None,
    port: int = 0,
    log: IO[str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[ServedDaemon]:
    """Run a daemon on a port, or any free one. Stop it with SIGTERM unless it has ended.

    `config` is the content or the path of its config file. `log` gets stderr. `prefix` is a command that runs it.
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
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()  # otherwise a daemon that does not stop would be waited for


def backup(state_dir: Path, target: Path) -> None:
    """Make a backup of the database."""
    command = [sys.executable, "-m", "progressd", "backup", "--state-dir", str(state_dir), str(target)]
    subprocess.run(command, check=True, capture_output=True)


def restore(state_dir: Path, source: Path) -> None:
    """Restore a backup as docs/operations.md describes, while no daemon runs."""
    for name in ("progressd.db", "progressd.db-wal", "progressd.db-shm"):
        (state_dir / name).unlink(missing_ok=True)
    shutil.copy(source, state_dir / "progressd.db")
