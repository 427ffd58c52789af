"""Find the progress of a program in its output. This package starts no program and does no network I/O."""
