"""Where events come in: the runner's children, and producers on the Unix socket."""
