"""Reap adopted children: processes whose parent has ended.

PID 1 adopts them (in a container, the daemon), and so does a subreaper (see `adopt`). An ended process stays a zombie
until its parent reaps it. A process that adopts must start its own children with `reaper.open_process`.
"""

import ctypes
import os
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Final

import trio

from progressd.system.cgroup import Cgroup
from progressd.system.process_tree import Tree, running

PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)


class Reaper:
    """Reap adopted children. There is one instance, `reaper`, because a process has one set of children."""

    def __init__(self) -> None:
        self._own = set[int]()
        self._starting = 0
        self._running = False

    async def run(self) -> None:
        """Reap until cancelled."""
        with trio.open_signal_receiver(signal.SIGCHLD) as ended:
            self._running = True
            self.reap()
            async for _ in ended:
                self.reap()

    async def open_process(self, command: Sequence[str], **options: Any) -> trio.Process:
        """Start a process, like trio.lowlevel.open_process."""
        self._starting += 1  # do not reap a child before its id is known
        try:
            process: trio.Process = await trio.lowlevel.open_process(command, **options)
            self._own.add(process.pid)
        finally:
            self._starting -= 1
            self.reap()
        return process

    async def exit_status(self, process: trio.Process) -> int:
        """Wait for the end of a process, and return its exit status."""
        status = await process.wait()
        self._own.discard(process.pid)
        self.reap()
        return status

    def own(self, pid: int) -> None:
        """Do not reap this child, which was started in another way. `status_of` does."""
        self._own.add(pid)

    async def status_of(self, pid: int) -> int:
        """Wait for the end of such a child, and return its exit status; negative for a signal."""
        descriptor = os.pidfd_open(pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        return self._reap_own(pid)

    def _reap_own(self, pid: int) -> int:
        _, status = os.waitpid(pid, 0)
        self._own.discard(pid)
        self.reap()
        return os.waitstatus_to_exitcode(status)

    def reap(self) -> None:
        """Reap adopted children up to the first own child. `exit_status` of that child reaps the rest."""
        with suppress(ChildProcessError):
            while self._running and not self._starting:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid in self._own:
                    break
                os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)


reaper: Final = Reaper()


def adopt(older: Collection[int] | None = None, cgroup: Cgroup | None = None) -> Tree:
    """Adopt and reap descendants that lose their parent, until Trio stops.

    Return the tree of all descendants, except the `older` children; None: those that already exist. The processes in
    `cgroup` belong to the tree, too.
    """
    own = os.getpid()
    children = [process for process in running() if process.parent == own]
    before = {process.identity for process in children if older is None or process.pid in older}
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # on failure, nothing is adopted
    trio.lowlevel.spawn_system_task(reaper.run)
    return Tree(lambda all_: {one.pid: "" for one in all_ if one.parent == own and one.identity not in before}, cgroup)
