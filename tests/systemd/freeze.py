"""Stop the main thread of a process, or Trio's worker threads, while the input is open: freeze.py PID main|workers."""

import contextlib
import ctypes
import os
import select
import sys

PTRACE_ATTACH, PTRACE_DETACH = 16, 17  # ptrace(2): it stops one thread, where a signal stops all
ALL = 0x40000000  # __WALL of waitpid(2)

pid, which = int(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)


def ptrace(request: int, thread: int) -> None:
    if libc.ptrace(request, thread, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")


def freeze(thread: int) -> None:
    """Stop a thread in a system call. Elsewhere it may hold the GIL, and all threads would stop."""
    while True:
        ptrace(PTRACE_ATTACH, thread)
        os.waitpid(thread, ALL)
        with open(f"/proc/{pid}/task/{thread}/syscall") as syscall:
            if not syscall.read().startswith("-1 "):
                return
        ptrace(PTRACE_DETACH, thread)


def is_worker(thread: int) -> bool:
    """Exclude the thread of the log, which reports what is stuck."""
    with open(f"/proc/{pid}/task/{thread}/comm") as name:
        return "trio" in name.read().lower()


for thread in map(int, os.listdir(f"/proc/{pid}/task")):
    if thread == pid if which == "main" else is_worker(thread):
        freeze(thread)
print("frozen", flush=True)
while not select.select([sys.stdin], [], [], 0.05)[0]:
    with contextlib.suppress(ChildProcessError):  # who traces has to reap, or the process would never be gone
        while os.waitpid(-1, os.WNOHANG | ALL)[0]:
            pass
