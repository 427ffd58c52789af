"""Find the progress of processes from their positions in the files that they read and write.

It is an estimate: sort(1) reads the whole file before it works.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from progressd.core.event_limits import MAX_STEP_NAME
from progressd.core.events import ReportedProgress

MIN_SIZE: Final = 1024 * 1024  # bytes
MAX_PROCESSES: Final = 1000
MAX_ARGUMENTS: Final = 10_000  # of a command that are searched for files
MAX_STILL: Final = 10  # looks in which the current file does not move until another one replaces it
SECTOR: Final = 512  # bytes; the unit of /sys/dev/block/*/size
DELETED: Final = " (deleted)"
VIRTUAL: Final = ("/proc/", "/sys/", "/memfd:")
# Programs that read the files of their command line one after the other. The last one of cp and mv is the target.
ONE_BY_ONE: Final = frozenset(
    b"b2sum base64 bunzip2 bzip2 cat cksum cp grep gunzip gzip lz4 md5sum mv pigz sha1sum sha224sum sha256sum sha384sum"
    b" sha512sum sum unlz4 unxz unzstd wc xxhsum xz xzcat zcat zstd zstdcat".split()
)
WITH_TARGET: Final = frozenset({b"cp", b"mv"})

_Key = tuple[int, str, str]


class FilePosition(NamedTuple):
    """The position of a process in a file. `before` and `after`: bytes of the other files that the command names."""

    path: str
    size: int
    offset: int
    writes: bool = False
    before: int = 0
    after: int = 0

    def progress(self, remark: str = "") -> ReportedProgress:
        """Return it as the progress of a job."""
        name = os.path.basename(self.path).encode("utf-8", "replace").decode()
        step = f"{'Writing' if self.writes else 'Reading'} {name}{remark}"
        done = self.before + min(self.offset, self.size)
        return ReportedProgress(done, self.before + self.size + self.after, step[:MAX_STEP_NAME], unit="B")


class FileOffsets:
    """Search processes and their descendants for the largest file that is being read, or else written.

    A file that is written counts if its size is known: it has been allocated, or it is a block device. `pids` may be
    changed between two looks.
    """

    def __init__(self, pids: Sequence[int], min_size: int = MIN_SIZE) -> None:
        self.pids = pids
        self.seen = list[int]()  # the processes of the last look
        self._min_size = min_size
        self._before = dict[_Key, FilePosition]()
        self._current: _Key | None = None
        self._still = 0  # looks since the current file moved
        self._sizes = dict[bytes, int]()  # of the files on command lines; gzip(1) deletes its files

    def look(self) -> FilePosition | None:
        """Return the position, if it has changed since the last call."""
        now = dict[_Key, FilePosition]()
        self.seen = list(_tree(self.pids))
        for pid in self.seen:
            for descriptor, found in _files(pid, self._min_size):
                now[pid, descriptor, found.path] = found
        moved = {key for key, found in now.items() if self._moved(key, found)}
        self._still = 0 if self._current in moved else self._still + 1
        if self._current in now and self._still < MAX_STILL:
            moved.add(self._current)
        self._before, last = now, self._before
        self._current = max(moved, key=lambda key: (not now[key].writes, now[key].size), default=None)
        if self._current is None or last.get(self._current) == now[self._current]:
            return None
        return self._among_arguments(self._current[0], now[self._current])

    def _moved(self, key: _Key, found: FilePosition) -> bool:
        before = self._before.get(key)
        return before is not None and found.offset > before.offset and (not found.writes or found.size == before.size)

    def _among_arguments(self, pid: int, found: FilePosition) -> FilePosition:
        """Add the sizes of the files that the command reads before and after this one."""
        if found.writes:
            return found
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                program, *words = file.read().removesuffix(b"\0").split(b"\0")[:MAX_ARGUMENTS]
            if (name := os.path.basename(program)) not in ONE_BY_ONE:
                return found
            directory = os.readlink(os.fsencode(f"/proc/{pid}/cwd"))
            paths = [os.path.normpath(os.path.join(directory, word)) for word in words]
            number = paths.index(os.fsencode(found.path))
        except (OSError, ValueError):  # it has ended, or the file is not on its command line
            return found
        sizes = [self._size_of(path) for path in (paths[:-1] if name in WITH_TARGET else paths)]
        return found._replace(before=sum(sizes[:number]), after=sum(sizes[number + 1 :]))

    def _size_of(self, path: bytes) -> int:
        if path not in self._sizes:
            self._sizes[path] = os.path.getsize(path) if os.path.isfile(path) else 0
        return self._sizes[path]


def _tree(roots: Sequence[int]) -> Iterator[int]:
    """Yield processes and their descendants."""
    waiting, seen = list(roots), set[int]()
    while waiting and len(seen) < MAX_PROCESSES:
        pid = waiting.pop()
        if pid in seen:
            continue
        seen.add(pid)
        yield pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                waiting += map(int, file.read().split())
        except OSError:
            continue


def _files(pid: int, min_size: int) -> Iterator[tuple[str, FilePosition]]:
    """Yield the files and block devices in which a process may have a position, each with its descriptor."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for descriptor in descriptors:
        try:
            size = _size(os.stat(f"/proc/{pid}/fd/{descriptor}"))
            if size < min_size:
                continue
            path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file if ":" in line)
            offset, writes = int(fields["pos"]), int(fields["flags"], 8) & os.O_ACCMODE != os.O_RDONLY
            if not path.startswith(VIRTUAL) and not (writes and offset >= size):
                yield descriptor, FilePosition(path.removesuffix(DELETED), size, offset, writes)
        except (OSError, ValueError, KeyError):  # the file was closed meanwhile
            continue


def _size(status: os.stat_result) -> int:
    """Return the size of a regular file or a block device; 0 for anything else."""
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if not stat.S_ISBLK(status.st_mode):
        return 0
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    with open(f"/sys/dev/block/{device}/size", encoding="ascii") as file:
        return int(file.read()) * SECTOR
