"""Estimate the progress of a command from its position in the file that it reads.

It is an estimate: sort(1) reads the whole file before it works. So it is used only if nothing else was found.
"""

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from progressd.core.events import MAX_NAME, ReportedProgress

MIN_SIZE = 1024 * 1024  # bytes
MAX_PROCESSES = 1000


class _Position(NamedTuple):
    path: str
    size: int
    offset: int


class FileOffsets:
    """Search a process and its descendants for the largest file that is being read."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = dict[tuple[int, str, str], int]()  # offsets by process, descriptor and path

    def look(self) -> ReportedProgress | None:
        """Return the estimate, if the position in a large file has moved since the last call."""
        now = dict[tuple[int, str, str], int]()
        best: _Position | None = None
        for pid in _tree(self._pid):
            for descriptor, found in _files(pid):
                key = (pid, descriptor, found.path)
                now[key] = found.offset
                moved = found.offset > self._before.get(key, found.offset)
                if moved and (best is None or found.size > best.size):
                    best = found
        self._before = now
        if best is None:
            return None
        name = os.path.basename(best.path).encode("utf-8", "replace").decode()
        step = f"Reading {name} (estimate)"[:MAX_NAME]
        return ReportedProgress(min(best.offset, best.size), best.size, step, unit="B")


def _tree(root: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    waiting, seen = [root], 0
    while waiting and seen < MAX_PROCESSES:
        pid = waiting.pop()
        seen += 1
        yield pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                waiting += map(int, file.read().split())
        except OSError:
            continue


def _files(pid: int) -> Iterator[tuple[str, _Position]]:
    """Yield the large regular files that a process has open only for reading, each with its descriptor."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for descriptor in descriptors:
        try:
            status = os.stat(f"/proc/{pid}/fd/{descriptor}")
            if not stat.S_ISREG(status.st_mode) or status.st_size < MIN_SIZE:
                continue
            with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file if ":" in line)
            path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            if int(fields["flags"], 8) & os.O_ACCMODE == os.O_RDONLY:
                yield descriptor, _Position(path, status.st_size, int(fields["pos"]))
        except (OSError, ValueError, KeyError):  # the file was closed meanwhile
            continue
