"""A client's `Job` in a test, and the state that the daemon shows."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from progressd.client import Job

from support.serving import PATIENCE, ServedDaemon

WAYS = ["socket", "url"]


def to(daemon: ServedDaemon, way: str = "socket") -> dict[str, Any]:
    return {"url": daemon.url} if way == "url" else {"socket": daemon.state_dir / "ingest.sock"}


def request(daemon: ServedDaemon, method: str, job: Job | str, **what: Any) -> httpx.Response:
    job_id = job if isinstance(job, str) else job.id
    return daemon.request(method, f"/api/jobs/{job_id}", **what)


def seen(daemon: ServedDaemon, job: Job | str) -> dict[str, Any]:
    """Return the job as the daemon shows it; empty if unknown."""
    return daemon.job(job if isinstance(job, str) else job.id)


def status(daemon: ServedDaemon, job: Job | str) -> str:
    return str(seen(daemon, job).get("status"))


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@contextlib.contextmanager
def working(**how: Any) -> Iterator[tuple[Job, threading.Event]]:
    """Run a job in another thread; give the job, and the event that ends it."""
    job, go = Job("scan", 10, **how), threading.Event()

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
