"""The pipelines that come with the daemon, each a program of its own that the runner starts as a child process."""
