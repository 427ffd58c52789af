"""What progressd decides, as plain values and functions; nothing in here does I/O."""
