"""Other libraries whose progress becomes jobs. Each module needs its library, and none of the daemon's packages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from progressd.client.job import Job

MAX_WAIT: Final = 5.0  # seconds at the end of a process


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


class Ends:
    """The jobs that have ended, until the daemon has accepted that. So a worker need not wait for each of them."""

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
