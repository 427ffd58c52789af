"""A client's `Job` in a test, and the state that the daemon shows."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from progressd.client import Job
from progressd.client.reporter import Timing

from support.serving import ServedDaemon
from support.waiting import PATIENCE

WAYS = ["socket", "url"]
SOON = Timing(
    report_interval=0.02,
    slow_interval=0.2,
    poll_interval=0.2,
    max_delay=0.1,
    max_closing_delay=0.1,
    unconnected_timeout=10.0,
)
"""A tenth of the usual intervals, and a connection may take long on a busy machine."""


def place(daemon: ServedDaemon, way: str) -> str:
    """Where a daemon is, for the argument or option `way`."""
    return daemon.url if way == "url" else str(daemon.state_dir / "ingest.sock")


def to(daemon: ServedDaemon, way: str = "socket") -> dict[str, Any]:
    """The arguments of a `Job` that a daemon receives."""
    return {way: place(daemon, way), "timing": SOON}


def request(daemon: ServedDaemon, method: str, job: Job | str, **what: Any) -> httpx.Response:
    job_id = job if isinstance(job, str) else job.id
    return daemon.request(method, f"/api/jobs/{job_id}", **what)


def registered(daemon: ServedDaemon) -> str:
    """Register a job and return its id."""
    response = daemon.request("POST", "/api/jobs", json={})
    return str(response.json()["id"])


def seen(daemon: ServedDaemon, job: Job | str) -> dict[str, Any]:
    """Return the job as the daemon shows it; empty if unknown."""
    return daemon.job(job if isinstance(job, str) else job.id)


def newest(daemon: ServedDaemon, kind: str) -> dict[str, Any]:
    """Return the newest job of a kind; empty if there is none."""
    jobs: list[dict[str, Any]] = daemon.request("GET", f"/api/jobs?limit=1&kind={kind}").json()["jobs"]
    return jobs[0] if jobs else {}


def status(daemon: ServedDaemon, job: Job | str) -> str:
    return str(seen(daemon, job).get("status"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@contextlib.contextmanager
def working(**how: Any) -> Iterator[tuple[Job, threading.Event]]:
    """Run a job in another thread; give the job, and the event that ends it."""
    job, go = Job("scan", 10, **{"timing": SOON, **how}), threading.Event()

    def work() -> None:
        with job:
            go.wait(PATIENCE)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield job, go
    finally:
        go.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
