"""Decide what events mean, as plain values and functions; no I/O."""
