"""Jobs that the daemon runs: processes, their output, their limits, their end."""
