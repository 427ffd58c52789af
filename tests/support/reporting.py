"""`Job` in a program of the tests, and what a daemon shows of it."""

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
    return httpx.request(method, f"{daemon.url}/api/jobs/{job_id}", trust_env=False, timeout=PATIENCE, **what)


def seen(daemon: ServedDaemon, job: Job | str) -> dict[str, Any]:
    """The job as the daemon shows it; empty while it does not know it."""
    response = request(daemon, "GET", job)
    view: dict[str, Any] = response.json() if response.is_success else {}
    return view


def status(daemon: ServedDaemon, job: Job | str) -> str:
    return str(seen(daemon, job).get("status"))


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@contextlib.contextmanager
def working(**how: Any) -> Iterator[tuple[Job, threading.Event]]:
    """A job in another thread, and the event that ends it; the thread has ended when the block is left."""
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
