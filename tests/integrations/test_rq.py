"""The jobs of RQ are jobs, with a real worker and a real server (Valkey)."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotConnected
from rq import Queue, Retry
from rq.command import send_stop_job_command
from rq.job import Job
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
TASKS = """
import os, signal, time
from rq import get_current_job

def scan():
    job = get_current_job()
    job.meta["progress"] = {"current": 3, "total": 4, "description": "Page 3"}
    job.save_meta()

def broken():
    raise ValueError("the tape is torn")

def again():
    if not os.path.exists("again"):
        open("again", "w").close()
        raise ValueError("the tape is stuck")

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def cancelled():
    job = get_current_job()
    while True:
        job.meta["progress"] = 40
        job.save_meta()

def endless():
    time.sleep(1000)
"""

pytestmark = pytest.mark.skipif(SERVER is None, reason="needs valkey-server or redis-server")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    assert SERVER is not None
    path = tmp_path / "redis.sock"
    words = [SERVER, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process, Redis(unix_socket_path=str(path)) as client:

        def answers() -> bool:
            try:
                return bool(client.ping())
            except NotConnected:
                return False

        until(answers)
        yield client
        process.terminate()


def job_of(queue: Queue, job_id: str) -> Job:
    """Return a job of RQ. Its worker is known a moment after progressd knows the job."""
    job = queue.fetch_job(job_id)
    assert job is not None
    return job


def test_the_jobs_of_a_worker_are_jobs(
    redis: Redis, tmp_path: Path, daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.setenv("PROGRESSD_URL", daemon.url)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    queue = Queue("scans", connection=redis)
    names = ["scan", "broken", "killed", "endless", "cancelled"]
    scan, broken, killed, endless, cancelled = (queue.enqueue(f"tasks.{name}").id for name in names)
    again = queue.enqueue("tasks.again", retry=Retry(max=1)).id
    worker = [sys.executable, "-W", "ignore", "-m", "rq.cli", "worker", "scans", "--burst", "--quiet"]
    worker += ["--url", f"unix://{tmp_path}/redis.sock", "--worker-class", "progressd.integrations.rq.Worker"]
    with subprocess.Popen(worker, cwd=tmp_path, start_new_session=True) as process:
        try:
            until(lambda: daemon.job(endless).get("status") == "processing" and job_of(queue, endless).worker_name)
            send_stop_job_command(redis, endless)
            until(lambda: daemon.job(cancelled).get("progress", {}).get("percent") == 40)
            assert daemon.request("DELETE", f"/api/jobs/{cancelled}").is_success
            assert process.wait(PATIENCE) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):  # a failed test must not wait for an endless job
                os.killpg(process.pid, signal.SIGKILL)
    job = daemon.job(scan)
    assert (job["status"], job["kind"], job["labels"]["queue"]) == ("completed", "tasks.scan", "scans")
    assert (job["progress"]["current_step"], job["progress"]["step_name"]) == (3, "Page 3")
    assert daemon.job(broken)["error"] == "ValueError: the tape is torn"
    assert daemon.job(killed)["error"].startswith("Work-horse terminated unexpectedly")
    assert (daemon.job(endless)["status"], daemon.job(again)["status"]) == ("cancelled", "completed")
    assert (result := job_of(queue, cancelled).latest_result()) is not None
    assert "JobCancelled" in str(result.exc_string)
