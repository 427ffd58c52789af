"""Run jobs as child processes: start, output, limits and end."""
