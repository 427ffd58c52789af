"""`logging.getLogger().addHandler(LogHandler(job))` adds the log records of a program to the log of its job."""

import logging
from typing import Final

from progressd.client.job import Job

FORMAT: Final = "%(levelname)s %(name)s: %(message)s"  # the log of the job has the times
OWN: Final = "progressd.client"


class LogHandler(logging.Handler):
    """Pass records on to `Job.log`, as standard error. Never waits.

    Records of progressd itself are left out, because they may say that the log cannot be sent.
    """

    def __init__(self, job: Job, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._job = job
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Add a record to the log of the job."""
        if record.name == OWN or record.name.startswith(f"{OWN}."):
            return
        try:
            self._job.log(self.format(record), "stderr")
        except Exception:
            self.handleError(record)
