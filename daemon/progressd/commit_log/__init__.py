"""The commit log: entries that ingest has decided, in one order."""
