"""The full-screen list of jobs: `progressd watch` on a terminal."""
