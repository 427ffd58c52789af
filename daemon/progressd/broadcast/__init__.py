"""Deliver messages to watchers: topics, fan-out, and the bytes each connection still has to send."""
