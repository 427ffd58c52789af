"""Find the progress of processes from their positions in the files that they read and write.

It is an estimate: sort(1), for example, reads the whole file before it starts to sort.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from progressd.core.event_limits import MAX_STEP_NAME
from progressd.core.events import ReportedProgress
from progressd.system.process_tree import Identity, Process, is_running, look

MIN_SIZE: Final = 1024 * 1024  # bytes
MAX_PROCESSES: Final = 1000
MAX_ARGUMENTS: Final = 10_000  # arguments of a command that are searched for files
MAX_STILL: Final = 10  # checks without movement in the current file, after which another file replaces it
SECTOR: Final = 512  # bytes; the unit of /sys/dev/block/*/size
DELETED: Final = " (deleted)"
VIRTUAL: Final = ("/proc/", "/sys/", "/memfd:")
# Programs that read the files of their command line one after the other. The last one of cp and mv is the target.
ONE_BY_ONE: Final = frozenset(
    b"b2sum base64 bunzip2 bzip2 cat cksum cp grep gunzip gzip lz4 md5sum mv pigz sha1sum sha224sum sha256sum sha384sum"
    b" sha512sum sum unlz4 unxz unzstd wc xxhsum xz xzcat zcat zstd zstdcat".split()
)
WITH_TARGET: Final = frozenset({b"cp", b"mv"})

_Key = tuple[Identity, str, str]


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
    """Find the largest file that processes and their descendants read, or else write.

    A file that is written counts if its size is known: it has been allocated, or it is a block device. `follow`: also
    search the descendants that outlive their parents.
    """

    def __init__(self, roots: Sequence[Process], min_size: int = MIN_SIZE, *, follow: bool = False) -> None:
        self.processes = roots  # those that ran at the last look
        self._roots = roots
        self._min_size = min_size
        self._follow = follow
        self._before = dict[_Key, FilePosition]()
        self._current: _Key | None = None
        self._still = 0  # looks since the current file moved
        # of the files on the command line of each process; gzip(1) deletes its files
        self._sizes = dict[Identity, dict[bytes, int]]()

    def look(self) -> FilePosition | None:
        """Return the position, if it has changed since the last call. Forget the processes that have ended."""
        now = dict[_Key, FilePosition]()
        try:
            self.processes = list(_tree(self._roots))
        except OSError:  # the system lacks resources
            return None
        if self._follow:
            self._roots = self.processes
        self._sizes = {one.identity: self._sizes.get(one.identity, {}) for one in self.processes}
        for process in self.processes:
            for descriptor, found in open_files(process.pid, self._min_size):
                now[process.identity, descriptor, found.path] = found
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

    def _among_arguments(self, process: Identity, found: FilePosition) -> FilePosition:
        """Add the sizes of the files that the command reads before and after this one."""
        if found.writes:
            return found
        pid, _ = process
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
        known = self._sizes[process]
        sizes = [_size_of(path, known) for path in (paths[:-1] if name in WITH_TARGET else paths)]
        return found._replace(before=sum(sizes[:number]), after=sum(sizes[number + 1 :]))


def _size_of(path: bytes, known: dict[bytes, int]) -> int:
    if path not in known:
        known[path] = os.path.getsize(path) if os.path.isfile(path) else 0
    return known[path]


def _tree(roots: Iterable[Process]) -> Iterator[Process]:
    """Yield the processes that still run, and their descendants. Raises OSError if the system lacks resources."""
    waiting, seen = [one for one in roots if is_running(one)], set[Identity]()
    while waiting and len(seen) < MAX_PROCESSES:
        process = waiting.pop()
        if process.identity in seen:
            continue
        seen.add(process.identity)
        yield process
        try:
            with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
                children = [look(int(pid)) for pid in file.read().split()]
        except OSError:
            continue
        waiting += [child for child in children if child is not None]


def open_files(pid: int, min_size: int) -> Iterator[tuple[str, FilePosition]]:
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
