"""Where jobs and their state changes are kept."""
