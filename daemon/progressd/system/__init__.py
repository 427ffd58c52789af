"""Interfaces to the host: systemd, the journal, logs, the file system, processes."""
