"""Report the progress of long-running jobs to watchers, live."""

__version__ = "0.1.0"
