"""The rules for jobs, events and messages, as plain values and functions without I/O."""
