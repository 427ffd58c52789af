"""Modules that report the progress of other libraries as jobs. Each needs its library, but no package of the daemon."""

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from progressd.client.errors import JobCancelled
from progressd.client.job import Job

MAX_WAIT: Final = 5.0  # seconds at the end of a process
LEASE: Final = 3600.0  # seconds; a task that waits for its next attempt reports nothing
STEP_KEYS: Final = ("description", "status", "message", "step")


@contextmanager
def required(library: str, name: str) -> Iterator[None]:
    """Import a library in this block. Raises ModuleNotFoundError, with what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        text = f"progressd.integrations.{library} needs {name}: pip install {library}"
        raise ModuleNotFoundError(text, name=library) from None


def uuid_of(task: str) -> str:
    """Return the id of a job for the id of a task: the same, if it is a UUID."""
    try:
        return str(uuid.UUID(task))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, task))


def report(job: Job, meta: object, step: str = "") -> None:
    """Report the progress that a task stores in its `meta`. `step`: the name of the step, unless `meta` has one.

    Raises JobCancelled if the job is cancelled.
    """
    if isinstance(meta, Mapping):
        step = next((str(meta[key]) for key in STEP_KEYS if meta.get(key)), step)
        current, total, percent = (meta.get(key) for key in ("current", "total", "percent"))
        job.progress(current, total, step, None if current is not None and total else percent)
    else:
        job.progress(step_name=step, percent=meta if isinstance(meta, int | float) else None)
    if job.cancelled:
        raise JobCancelled(f"job {job.id} was cancelled")


class Ends:
    """The jobs that have ended, until the daemon has accepted their ends. So a worker need not wait for each."""

    def __init__(self) -> None:
        self._jobs = list[Job]()

    def add(self, job: Job) -> None:
        """Add a job that has ended."""
        self._jobs = [job, *(other for other in self._jobs if not other.wait(0))]

    def wait(self, **_: Any) -> None:
        """Wait for the daemon, at the end of the process."""
        give_up = time.monotonic() + MAX_WAIT
        for job in self._jobs:
            job.wait(max(0.0, give_up - time.monotonic()))
