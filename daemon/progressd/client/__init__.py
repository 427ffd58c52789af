"""For programs that report on a job (`Job`), and for those that watch (`progressd.client.watcher`)."""

from progressd.client.errors import JobCancelled
from progressd.client.job import Job

__all__ = ["Job", "JobCancelled"]
