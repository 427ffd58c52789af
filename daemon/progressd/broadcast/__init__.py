"""Deliver messages to watchers: topics, fan-out, and the unsent bytes of each connection."""
