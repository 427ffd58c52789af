"""A file being received, until it is whole on the disk as the input of its job."""

import io
import os
from functools import partial
from pathlib import Path
from typing import TypeAlias

import trio

from progressd.files.quota import DiskUsage, FreeSpaceGuard
from progressd.system.fs import sync

AsyncFile: TypeAlias = trio._file_io.AsyncIOWrapper[io.BufferedWriter]


class Upload:
    """A file being received."""

    def __init__(self, file: AsyncFile, path: Path, target: Path, headroom: FreeSpaceGuard, stored: DiskUsage) -> None:
        self._file = file
        self._path = path
        self._target = target
        self._headroom = headroom
        self._stored = stored
        self._receiving = 0  # bytes that count as being received
        self.head = b""  # the first 1024 bytes

    async def write(self, data: bytes) -> None:
        """Append. Raises NoSpace."""
        self._stored.require(len(data))
        self._headroom.take(len(data))
        self._stored.receiving += len(data)
        self._receiving += len(data)
        if len(self.head) < 1024:
            self.head += data[: 1024 - len(self.head)]
        await self._file.write(data)

    async def finish(self) -> None:
        """Have it on the disk, whole and synced, as the input of its job."""
        await self._file.flush()
        await trio.to_thread.run_sync(partial(os.fsync, self._file.wrapped.fileno()))
        await self.replace_with(self._path)
        self.release()  # the very moment that they count as stored
        await self._file.aclose()

    def release(self) -> None:
        """Count nothing as being received any more."""
        self._stored.receiving -= self._receiving
        self._receiving = 0

    async def replace_with(self, path: Path) -> None:
        """Make a file that is on the disk already the input of the job, at once. Raises FileNotFoundError."""
        new = new_input(self._target)

        def link() -> None:
            sync(self._path.parent)  # first: by this name the next daemon knows that the rest never became a job
            self._target.parent.mkdir(exist_ok=True)
            new.unlink(missing_ok=True)
            os.link(path, new)
            os.replace(new, self._target)
            sync(self._target.parent, self._target.parent.parent)

        await self._stored.changing([self._target.parent], link)


def new_input(path: Path) -> Path:
    """What replaces an input, for a moment."""
    return path.with_name("input.new")
