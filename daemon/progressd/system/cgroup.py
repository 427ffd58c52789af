"""A cgroup for the processes of one command. They cannot leave it unnoticed, and one write kills them all (cgroups(7)).

This works only where systemd has delegated the cgroup of this process (`Delegate=yes`), as in the shipped service. This
module imports little, because `progressd run` needs it before the command starts.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Final

MOUNTED: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")  # the second path is used beside version 1
DELEGATED: Final = "user.delegate"  # systemd sets this attribute
KILL_TIMEOUT: Final = 2.0  # seconds
FREEZE_TIMEOUT: Final = 0.2  # seconds; a process that waits for a disk cannot be frozen


def own_cgroup() -> str | None:
    """Return the directory of the cgroup of this process, if it is delegated; otherwise None."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            own = next(line.rstrip("\n")[3:] for line in file if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    for root in MOUNTED:
        path = root + own
        with contextlib.suppress(OSError):
            if os.getxattr(path, DELEGATED) == b"1" and os.path.exists(f"{path}/cgroup.kill"):  # Linux 5.14
                return path
    return None


class Cgroup:
    """The cgroup at a path. The methods raise nothing if it has been removed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.entrance = f"{path}/cgroup.procs"  # a process that writes 0 to this file enters

    @classmethod
    def new(cls, name: str) -> "Cgroup | None":
        """Create a cgroup below that of this process. Return None if this is impossible."""
        own = own_cgroup()
        if own is None:
            return None
        try:
            os.mkdir(f"{own}/{name}")
        except FileExistsError:
            pass  # it exists: a process of an earlier attempt could not be killed
        except OSError:
            return None
        return cls(f"{own}/{name}")

    @classmethod
    def existing(cls, prefix: str) -> "dict[str, Cgroup]":
        """Return the cgroups below that of this process whose names begin with a prefix, by the rest of their names."""
        own = own_cgroup()
        names = [] if own is None else os.listdir(own)
        return {name.removeprefix(prefix): cls(f"{own}/{name}") for name in names if name.startswith(prefix)}

    def enter(self) -> None:
        """Move this process into it."""
        self._write("cgroup.procs", "0")

    def pids(self) -> list[int]:
        """Return the ids of its processes, including those in cgroups below it."""
        found = list[int]()
        for directory, _, _ in os.walk(self._path):
            with contextlib.suppress(OSError), open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                found += map(int, file.read().split())
        return [pid for pid in found if pid]  # 0: a process of another PID namespace

    def is_populated(self) -> bool:
        """Return whether any process is in it or below it. Zombies do not count."""
        return "populated 1" in self._events()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop its processes for the duration of the block, so that none starts another one unnoticed."""
        self._write("cgroup.freeze", "1")
        try:
            until = time.monotonic() + FREEZE_TIMEOUT
            while "frozen 0" in self._events() and time.monotonic() < until:
                time.sleep(0.001)
            yield
        finally:
            self._write("cgroup.freeze", "0")

    def kill(self) -> None:
        """Send SIGKILL to all processes at once, including those that are being started."""
        self._write("cgroup.kill", "1")

    def end(self) -> bool:
        """Kill all processes and remove the cgroup. Return whether all have ended. Blocks for at most KILL_TIMEOUT."""
        self.kill()
        until = time.monotonic() + KILL_TIMEOUT
        while self.is_populated():
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        self.remove()
        return True

    def remove(self) -> None:
        """Remove it, unless a process is left."""
        for directory, _, _ in os.walk(self._path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def _events(self) -> str:
        try:
            with open(f"{self._path}/cgroup.events", encoding="ascii") as file:
                return file.read()
        except OSError:
            return ""

    def _write(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError), open(f"{self._path}/{name}", "w", encoding="ascii") as file:
            file.write(text)
