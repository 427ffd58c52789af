"""Processes of another user, as with sudo: the daemon cannot end them, reports that, and continues.

The daemon runs as root without CAP_KILL and CAP_SYS_PTRACE, so it has no rights over processes of other users.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE, alive, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

RESTRICTED = ["setpriv", "--bounding-set=-kill,-sys_ptrace", "--inh-caps=-kill,-sys_ptrace"]
CONFIG = """
[runner]
concurrency = 1
kill_grace = "0.2s"
[shutdown]
wait_for_jobs = false
[pipelines.stays]
command = ["bash", "-c", "{other} & wait", "{{input}}"]
accept = ["*/*"]
[pipelines.limited]
command = ["bash", "-c", "{other} & wait", "{{input}}"]
accept = ["*/*"]
timeout = "3s"
[pipelines.leaves]
command = ["bash", "-c", "{other} & until [ -s $0.pid ]; do sleep 0.01; done", "{{input}}"]
accept = ["*/*"]
[pipelines.next]
command = ["true", "{{input}}"]
accept = ["*/*"]
""".format(other="setpriv --reuid=65534 --clear-groups env -i sh -c 'echo $$; exec sleep 1000' > $0.pid")


class Jobs:
    """A daemon, and the processes that its jobs left."""

    def __init__(self, daemon: ServedDaemon, log: Path) -> None:
        self.daemon = daemon
        self._log = log
        self.left = list[int]()

    def process_of(self, job_id: str) -> int:
        """Wait for the process of the other user, and return its id."""
        path = self.daemon.state_dir / "jobs" / job_id / "input.pid"
        until(lambda: path.exists() and path.read_text().endswith("\n"))
        self.left.append(int(path.read_text()))
        return self.left[-1]

    def errors(self, job_id: str) -> list[str]:
        """Return the errors that the daemon logged for a job."""
        return [line for line in self._log.read_text().splitlines() if job_id in line and "level=error" in line]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with restricted(tmp_path) as one:
        try:
            yield one
        finally:
            for pid in one.left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def restricted(tmp_path: Path) -> Iterator[Jobs]:
    path = tmp_path / "log"
    with path.open("w") as log, served_daemon(tmp_path / "state", config=CONFIG, log=log, prefix=RESTRICTED) as daemon:
        yield Jobs(daemon, path)


def described(pid: int) -> str:
    return f"{pid} (sleep, user nobody)"


def test_remaining_processes_are_reported_and_free_the_slot(jobs: Jobs) -> None:
    for pipeline, status in (("limited", "failed"), ("stays", "cancelled"), ("leaves", "completed")):
        job_id = jobs.daemon.submit(pipeline)
        pid = jobs.process_of(job_id)
        if pipeline == "stays":
            jobs.daemon.request("DELETE", f"/api/jobs/{job_id}")
        assert jobs.daemon.ended(jobs.daemon.submit("next"))["status"] == "completed"
        job = jobs.daemon.ended(job_id)
        assert job["status"] == status
        if pipeline == "limited":
            assert job["error"] == (
                "Pipeline error: stopped after 3 s, the time limit of the pipeline limited; "
                f"cannot end its processes {described(pid)}"
            )
        [error] = jobs.errors(job_id)
        assert described(pid) in error
        assert alive(pid)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGTERM, "Pipeline error: the daemon stopped; cannot end its processes {}"),
        (signal.SIGKILL, "interrupted"),
    ],
)
def test_a_job_that_still_runs_is_not_repeated(jobs: Jobs, tmp_path: Path, number: signal.Signals, error: str) -> None:
    job_id = jobs.daemon.submit("stays")
    pid = jobs.process_of(job_id)
    jobs.daemon.process.send_signal(number)
    assert jobs.daemon.process.wait(PATIENCE) == (0 if number is signal.SIGTERM else -number)
    with restricted(tmp_path) as again:
        assert again.daemon.ended(job_id)["error"] == error.format(described(pid))
