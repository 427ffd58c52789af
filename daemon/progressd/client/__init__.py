"""For programs that report on a job (`Job`), and for those that watch (`progressd.client.watcher`)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from progressd.client.errors import JobCancelled
    from progressd.client.job import Job

__all__ = ["Job", "JobCancelled"]


def __getattr__(name: str) -> object:
    """Import a class when it is used: the commands need other modules of this package, and neither of the two."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'job' if name == 'Job' else 'errors'}"), name)
