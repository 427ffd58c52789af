"""Report jobs (`Job`) and watch them (`watch`)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from progressd.client.errors import JobCancelled
    from progressd.client.job import Job
    from progressd.client.log_handler import LogHandler
    from progressd.client.watcher import watch

__all__ = ["Job", "JobCancelled", "LogHandler", "watch"]
_MODULES = {"Job": "job", "JobCancelled": "errors", "LogHandler": "log_handler", "watch": "watcher"}


def __getattr__(name: str) -> object:
    """Import a name on first use, so that commands that need only other modules start faster."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
