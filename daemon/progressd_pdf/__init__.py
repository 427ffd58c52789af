"""The pipelines included with the daemon. The runner starts each as a child process."""
