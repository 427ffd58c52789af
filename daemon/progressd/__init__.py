"""Pushes the progress of long-running jobs to whoever watches them, the moment it happens."""

__version__ = "0.1.0"
