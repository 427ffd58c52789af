"""Disk space: the free space the daemon leaves, and the most that job files may take."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from progressd.core.errors import InsufficientStorage, InvalidInput
from progressd.core.events import checked_job_id
from progressd.core.sizes import readable_size

POLL_INTERVAL: Final = 1024 * 1024  # bytes written, by all together, after which the disk is asked again


class FreeSpaceGuard:
    """Asked before anything is written."""

    def __init__(self, directory: Path, least: int) -> None:
        self.least = least  # bytes
        self._directory = directory
        self._until_look = 0  # bytes that may be written

    def require(self, size: int) -> int:
        """How many bytes there are beyond these. Raises InsufficientStorage."""
        left = shutil.disk_usage(self._directory).free - self.least - size
        if left < 0:
            raise InsufficientStorage("there is not enough space left on the daemon's disk for this")
        return left

    def take(self, size: int) -> None:
        """So many bytes are going to be written. Raises InsufficientStorage."""
        if size > self._until_look:
            self._until_look = size + min(self.require(size), POLL_INTERVAL)
        self._until_look -= size


KEPT: Final = ("input", "output", "stderr")  # of a job; what an attempt still writes is none of it
STEP: Final = 100  # directories looked at in one go: 1 ms
PAUSE: Final = 0.01  # seconds between two steps


class DiskUsage:
    """Asked before an upload is written, and told of all that changes. `count` comes first, and then now and then."""

    def __init__(self, directory: Path, most: int) -> None:
        """`directory`: has one for each job; `most`: bytes that all may take, 0 for any number."""
        self.most = most
        self.bytes = 0  # while these are counted for the first time, as many as have been found
        self.receiving = 0  # bytes of uploads that are not files of a job yet
        self._directory = directory
        self._changes: Counter[str] | None = None  # bytes, by job, since they were last looked at; while counting

    @property
    def total(self) -> int:
        """Bytes, with what is being received."""
        return self.bytes + self.receiving

    @property
    def full(self) -> InsufficientStorage | None:
        """Why nothing more may come in."""
        return self._refusal() if self.most and self.total >= self.most else None

    def require(self, size: int) -> None:
        """Whether so many bytes may come in. Raises InsufficientStorage."""
        if self.most and self.total + size > self.most:
            raise self._refusal()

    async def changing(self, directories: Sequence[Path], change: Callable[[], object]) -> None:
        """Have a thread change the files in these directories of jobs, and count what comes of it."""
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
            self.bytes += sum(grown)
            if self._changes is not None:
                for directory, size in zip(directories, grown, strict=False):  # none where it has not run
                    self._changes[directory.name] += size

    async def count(self) -> None:
        """Count everything anew, in steps. Raises OSError.

        What changes meanwhile counts as well. Until the next time it is only wrong by what is just being written when
        its job is looked at, and by a job that is deleted before its turn has come: that is taken off what it never was
        added to.
        """
        self._changes = changes = Counter[str]()
        found = 0
        try:
            with closing(directories_of_jobs(self._directory)) as entries:
                while step := await trio.to_thread.run_sync(
                    lambda: [(entry.name, _size(entry)) for entry in islice(entries, STEP)]
                ):
                    for name, size in step:
                        found += size
                        changes.pop(name, None)
                    self.bytes = max(self.bytes, found)
                    await trio.sleep(PAUSE)
            self.bytes = max(0, found + changes.total())
        finally:
            self._changes = None

    def _refusal(self) -> InsufficientStorage:
        return InsufficientStorage(
            f"there is no room for more files: those of jobs take {readable_size(self.total)} of the"
            f" {readable_size(self.most)} allowed (delete finished jobs to make room)"
        )


def directories_of_jobs(directory: Path) -> Generator[os.DirEntry[str]]:
    """All that is named as a job in it; the rest, such as a lost+found, is none of ours."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if _is_job_id(entry.name):
                yield entry


def files_of_jobs(directory: Path) -> Generator[tuple[str, str]]:
    """The names of files that begin with a job's id, up to a dot, and these; the rest, again, is none of ours."""
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
    """Bytes of the files of one job, 0 once they are gone."""
    size = 0
    for name in KEPT:
        with suppress(FileNotFoundError, NotADirectoryError):
            size += os.lstat(os.path.join(directory, name)).st_size
    return size
