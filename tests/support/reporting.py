"""Jobs that tests report, and how a daemon shows them."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from progressd.client import Job
from progressd.client.reporter import Timing

from support.serving import PATIENCE, ServedDaemon

WAYS = ["socket", "url"]
SOON = Timing(report_interval=0.02, slow_interval=0.2, poll_interval=0.2, max_delay=0.1, max_closing_delay=0.1)
"""A tenth of the usual waits."""


def place(daemon: ServedDaemon, way: str) -> str:
    """Where a daemon is, for the argument or option `way`."""
    return daemon.url if way == "url" else str(daemon.state_dir / "ingest.sock")


def to(daemon: ServedDaemon, way: str = "socket") -> dict[str, Any]:
    """The arguments of a `Job` that a daemon receives."""
    return {way: place(daemon, way), "timing": SOON}


def request(daemon: ServedDaemon, method: str, job: Job | str, **what: Any) -> httpx.Response:
    job_id = job if isinstance(job, str) else job.id
    return httpx.request(method, f"{daemon.url}/api/jobs/{job_id}", trust_env=False, timeout=PATIENCE, **what)


def registered(daemon: ServedDaemon) -> str:
    """Register a job and return its id."""
    response = httpx.post(f"{daemon.url}/api/jobs", json={}, trust_env=False, timeout=PATIENCE)
    return str(response.json()["id"])


def seen(daemon: ServedDaemon, job: Job | str) -> dict[str, Any]:
    """The job in the REST API, {} while there is none."""
    response = request(daemon, "GET", job)
    view: dict[str, Any] = response.json() if response.is_success else {}
    return view


def status(daemon: ServedDaemon, job: Job | str) -> str:
    return str(seen(daemon, job).get("status"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@contextlib.contextmanager
def working(**how: Any) -> Iterator[tuple[Job, threading.Event]]:
    """Report a job from another thread. Return it and the event that ends it; wait for the thread at the end."""
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
