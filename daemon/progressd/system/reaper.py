"""Reap the children that this process has not started itself: the adopted ones, whose own parent has ended.

Init adopts them, which in a container is the daemon, and so does a subreaper, as `adopt` makes of this process. Without
a parent that waits for it, an ended process stays a zombie. A program that adopts starts its own children with
`reaper.open_process`.
"""

import ctypes
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import trio

from progressd.system.process_tree import Tree, running

PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)


class Reaper:
    """Takes the exit status of adopted children. There is one, `reaper`, as a process has one set of children."""

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
        """Do what trio.lowlevel.open_process does."""
        self._starting += 1  # until its id is known, no child may be taken for somebody else's
        try:
            process: trio.Process = await trio.lowlevel.open_process(command, **options)
            self._own.add(process.pid)
        finally:
            self._starting -= 1
            self.reap()
        return process

    async def exit_status(self, process: trio.Process) -> int:
        """Wait for the end of a process, and take its exit status."""
        status = await process.wait()
        self._own.discard(process.pid)
        self.reap()
        return status

    def reap(self) -> None:
        """Reap up to the first that is our own: once its exit status has been taken, the others are reaped."""
        with suppress(ChildProcessError):
            while self._running and not self._starting:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid in self._own:
                    break
                os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)


reaper: Final = Reaper()


def adopt() -> Tree:
    """Adopt each process below this one that loses its parent, from now on until Trio ends, and reap it when it ends.

    Return the tree of all processes below this one, except those that are there already.
    """
    own = os.getpid()
    before = {process.identity for process in running() if process.parent == own}
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # it fails only where nothing is adopted then
    trio.lowlevel.spawn_system_task(reaper.run)
    return Tree(lambda all_: {one.pid: "" for one in all_ if one.parent == own and one.identity not in before})
