"""The tasks of Celery are jobs: with the memory broker, and with the processes of a real worker."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from support.reporting import newest
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until

FOLDERS = ("data_folder_in", "data_folder_out", "control_folder")
TASKS = """
import os, signal, sys, time
from celery import Celery
from progressd.client import JobCancelled
from progressd.integrations.celery import install

app = Celery("shop")
app.conf.update(broker_url=os.environ["BROKER"], result_backend=os.environ["BACKEND"], worker_lost_wait=0.1)
app.conf.update(broker_transport_options=dict.fromkeys({FOLDERS}, os.getcwd() + "/queue"))
install(app, ignore=["shop.quiet"], labels={"team": "shop"})

@app.task(bind=True, name="shop.scan")
def scan(self):
    self.update_state(state="PROGRESS", meta={"current": 3, "total": 4, "status": "Page 3"})
    return 4

@app.task(bind=True, name="shop.wait")
def wait(self):
    self.update_state(state="PROGRESS", meta={"current": 3, "total": 4})
    while not os.path.exists("go"):
        time.sleep(0.01)

@app.task(bind=True, name="shop.cancelled")
def cancelled(self):
    while True:
        self.update_state(state="PROGRESS", meta={"percent": 40})

@app.task(name="shop.broken")
def broken():
    raise ValueError("the tape is torn")

@app.task(bind=True, name="shop.again", max_retries=2)
def again(self):
    if self.request.retries < 2:
        raise self.retry(exc=ValueError("the tape is stuck"), countdown=0.01)
    return self.request.retries

@app.task(name="shop.quiet")
def quiet():
    return 1

@app.task(name="shop.lost")
def lost():
    os._exit(3)

@app.task(name="shop.endless")
def endless():
    time.sleep(1000)
"""
IN_MEMORY = """
from celery.contrib.testing.worker import start_worker
from tasks import *

with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
    print(*[task.delay().get(timeout=20, propagate=False) for task in (scan, broken, again, quiet)], sep="|")
"""


@pytest.fixture
def tasks(tmp_path: Path, daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of tasks that report to the daemon, and its directory."""
    (tmp_path / "tasks.py").write_text(TASKS.replace("{FOLDERS}", str(FOLDERS)))
    (tmp_path / "queue").mkdir()
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("PROGRESSD_URL", daemon.url)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def python(code: str, where: Path) -> str:
    words = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(words, cwd=where, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE).stdout


def test_tasks_are_jobs(tasks: Path, daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER", "memory://")
    monkeypatch.setenv("BACKEND", "cache+memory://")
    assert python(IN_MEMORY, tasks) == "4|the tape is torn|2|1\n"
    scan = newest(daemon, "shop.scan")
    assert (scan["status"], scan["progress"]["current_step"], scan["progress"]["step_name"]) == (
        "completed",
        3,
        "Page 3",
    )
    assert scan["labels"]["team"] == "shop"
    assert scan["labels"]["queue"] == "celery"
    broken = newest(daemon, "shop.broken")
    assert (broken["status"], broken["error"]) == ("failed", "the tape is torn")
    again = newest(daemon, "shop.again")
    assert (again["status"], again["progress"]["step_name"]) == ("completed", "Attempt 3")
    assert len(daemon.request("GET", "/api/jobs?kind=shop.again").json()["jobs"]) == 1
    assert newest(daemon, "shop.quiet") == {}


@pytest.fixture
def worker(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with two processes."""
    monkeypatch.setenv("BROKER", "filesystem://")
    monkeypatch.setenv("BACKEND", f"file://{tasks}/results")
    words = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks", "worker", "-c", "2", "-l", "error"]
    with subprocess.Popen(words, cwd=tasks, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        yield process
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.usefixtures("worker")
def test_a_job_ends_as_its_task_does(tasks: Path, daemon: ServedDaemon) -> None:
    with Celery(broker="filesystem://", backend=f"file://{tasks}/results") as app:
        app.conf.broker_transport_options = dict.fromkeys(FOLDERS, str(tasks / "queue"))
        scan, endless, lost = [app.send_task(f"shop.{name}").id for name in ("wait", "endless", "lost")]
        until(lambda: percent(daemon, scan) == 75 and daemon.job(endless).get("status") == "processing")
        assert "@" in daemon.job(scan)["labels"]["worker"]
        (tasks / "go").touch()
        assert daemon.ended(scan)["status"] == "completed"
        assert "exited prematurely" in daemon.ended(lost)["error"]
        app.control.revoke(endless, terminate=True)
        assert daemon.ended(endless)["status"] == "cancelled"
        stopped = app.send_task("shop.cancelled")
        until(lambda: percent(daemon, stopped.id) == 40)
        assert daemon.request("DELETE", f"/api/jobs/{stopped.id}").is_success
        assert "cancelled" in str(stopped.get(timeout=PATIENCE, propagate=False))


def percent(daemon: ServedDaemon, job_id: str) -> float | None:
    return daemon.job(job_id).get("progress", {}).get("percent")
