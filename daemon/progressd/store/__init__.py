"""Keep jobs and their state changes in SQLite."""
