"""Stops some threads of a process, and no others, while its input is open: freeze.py PID main|others."""

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
    """Stop it in a system call: between two of them it may hold the interpreter, and all others would stop as well."""
    while True:
        ptrace(PTRACE_ATTACH, thread)
        os.waitpid(thread, ALL)
        with open(f"/proc/{pid}/task/{thread}/syscall") as syscall:
            if not syscall.read().startswith("-1 "):
                return
        ptrace(PTRACE_DETACH, thread)


for thread in map(int, os.listdir(f"/proc/{pid}/task")):
    if (thread == pid) == (which == "main"):
        freeze(thread)
print("frozen", flush=True)
while not select.select([sys.stdin], [], [], 0.05)[0]:
    with contextlib.suppress(ChildProcessError):  # who traces has to reap, or the process would never be gone
        while os.waitpid(-1, os.WNOHANG | ALL)[0]:
            pass
