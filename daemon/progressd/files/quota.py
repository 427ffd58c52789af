"""Limits for disk space: the free space to leave, and the total size of the files of jobs."""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from progressd.core.errors import InsufficientStorage, InvalidInput, readable_size
from progressd.core.events import checked_job_id
from progressd.system.transient_errors import FULL

CHECK_INTERVAL: Final = 1024 * 1024  # bytes written by all uploads between two checks of the disk


class FreeSpaceGuard:
    """Check before a write that enough free space is left on the disk."""

    def __init__(self, directory: Path, min_free: int) -> None:
        self.min_free = min_free  # bytes
        self._directory = directory
        self._until_check = 0  # bytes that may be written before the next check

    def require(self, size: int) -> int:
        """Check that `size` bytes fit. Return the number of bytes left after them. Raises InsufficientStorage."""
        left = shutil.disk_usage(self._directory).free - self.min_free - size
        if left < 0:
            raise InsufficientStorage("not enough space left on the daemon's disk")
        return left

    def take(self, size: int) -> None:
        """Announce a write of `size` bytes. Raises InsufficientStorage."""
        if size > self._until_check:
            self._until_check = size + min(self.require(size), CHECK_INTERVAL)
        self._until_check -= size


COUNTED: Final = ("input", "output", "stderr")  # files of a job; the files of a running attempt do not count
LOG: Final = "log"  # the directory with the log of a job, which counts, too
COUNT_BATCH: Final = 100  # directories per thread: 1 ms
COUNT_INTERVAL: Final = 0.01  # seconds between two batches


class DiskUsage:
    """The total size of the files of jobs. Call `count` first, and again from time to time."""

    def __init__(
        self, directory: Path, max_bytes: int, *, batch: int = COUNT_BATCH, interval: float = COUNT_INTERVAL
    ) -> None:
        """Measure `directory`, which contains a directory for each job. `max_bytes`: the size limit; 0 for no limit."""
        self.bytes = 0  # size of the files; during the first count, of the files found so far
        self.receiving = 0  # bytes of uploads that are not files of a job yet
        self._directory = directory
        self.max_bytes = max_bytes
        self._batch = batch
        self._interval = interval
        self._changes: Counter[str] | None = None  # during a count: changed bytes by job, since the job was counted

    @property
    def total(self) -> int:
        """Return the total size in bytes, including uploads in progress."""
        return self.bytes + self.receiving

    @property
    def full(self) -> InsufficientStorage | None:
        """Return the error that rejects every upload; None unless the limit is reached."""
        return self._error() if self.max_bytes and self.total >= self.max_bytes else None

    def require(self, size: int) -> None:
        """Check that `size` bytes fit. Raises InsufficientStorage."""
        if self.max_bytes and self.total + size > self.max_bytes:
            raise self._error()

    async def changing(self, directories: Sequence[Path], change: Callable[[], object]) -> None:
        """Call `change`, which changes files in these directories, in a thread. Count the difference."""
        grown = list[int]()

        def run() -> None:
            before = [_size(directory) for directory in directories]
            try:
                change()
            finally:
                grown.extend(_size(directory) - size for directory, size in zip(directories, before, strict=True))

        try:
            await trio.to_thread.run_sync(run)
        finally:
            for directory, size in zip(directories, grown, strict=False):  # none if the thread did not run
                self.add(directory.name, size)

    def add(self, job_id: str, size: int) -> None:
        """Count bytes that were added to the files of a job."""
        self.bytes += size
        if self._changes is not None:
            self._changes[job_id] += size

    async def count(self) -> None:
        """Count all files again, in batches. Raises OSError.

        Changes during the count are included. Two errors are possible until the next count. A file that was being
        written when its job was counted may be wrong. A job that was deleted before it was counted is subtracted, but
        was never added.
        """
        self._changes = changes = Counter[str]()
        found = 0
        try:
            with closing(directories_of_jobs(self._directory)) as entries:
                while batch := await trio.to_thread.run_sync(
                    lambda: [(entry.name, _size(entry)) for entry in islice(entries, self._batch)]
                ):
                    for name, size in batch:
                        found += size
                        changes.pop(name, None)
                    self.bytes = max(self.bytes, found)
                    await trio.sleep(self._interval)
            self.bytes = max(0, found + changes.total())
        finally:
            self._changes = None

    def _error(self) -> InsufficientStorage:
        return InsufficientStorage(
            f"no room for more files: the files of all jobs take {readable_size(self.total)} of the"
            f" {readable_size(self.max_bytes)} allowed (delete finished jobs to make room)"
        )


def directories_of_jobs(directory: Path) -> Generator[os.DirEntry[str]]:
    """Yield the entries named by a job id. Other entries, such as lost+found, do not belong to the daemon."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if _is_job_id(entry.name):
                yield entry


def files_of_jobs(directory: Path) -> Generator[tuple[str, str]]:
    """Yield the files whose name up to the first dot is a job id, with that id."""
    with os.scandir(directory) as entries:
        for entry in entries:
            job_id = entry.name.partition(".")[0]
            if _is_job_id(job_id) and not entry.is_dir(follow_symlinks=False):
                yield entry.name, job_id


def _is_job_id(name: str) -> bool:
    with suppress(InvalidInput):
        return checked_job_id(name) == name
    return False


def _size(directory: os.PathLike[str]) -> int:
    """Return the size of a job's files in bytes; 0 if they were deleted."""
    size = 0
    for name in COUNTED:
        with suppress(FileNotFoundError, NotADirectoryError):
            size += os.lstat(os.path.join(directory, name)).st_size
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(os.path.join(directory, LOG)) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_size
    return size


@contextmanager
def disk_errors() -> Iterator[None]:
    """Convert disk errors to errors for the client."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InsufficientStorage("no space left on the daemon's disk") from error
        if error.errno == errno.EFBIG:
            raise InsufficientStorage("the file exceeds the file size limit of the daemon (ulimit -f)") from error
        raise
