"""Stops some threads of a process, and no others, while its input is open: freeze.py PID main|others."""

import contextlib
import ctypes
import os
import select
import sys

PTRACE_ATTACH = 16  # ptrace(2): it stops one thread, where a signal stops all
ALL = 0x40000000  # __WALL of waitpid(2)

pid, which = int(sys.argv[1]), sys.argv[2]
threads = [thread for thread in map(int, os.listdir(f"/proc/{pid}/task")) if (thread == pid) == (which == "main")]
libc = ctypes.CDLL(None, use_errno=True)
for thread in threads:
    if libc.ptrace(PTRACE_ATTACH, thread, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(thread, ALL)
print("frozen", flush=True)
while not select.select([sys.stdin], [], [], 0.05)[0]:
    with contextlib.suppress(ChildProcessError):  # who traces has to reap, or the process would never be gone
        while os.waitpid(-1, os.WNOHANG | ALL)[0]:
            pass
