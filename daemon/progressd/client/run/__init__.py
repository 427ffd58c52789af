"""`progressd run`: start a command, pass its output on, and report it as a job.

`launch` starts the command before Trio is imported, because that import takes longer than a command may wait.
`supervisor` then reports the job until the command has ended.
"""
