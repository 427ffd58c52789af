"""An upload in progress, until its file is stored as the input of its job."""

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
    """An upload in progress."""

    def __init__(self, file: AsyncFile, path: Path, target: Path, free_space: FreeSpaceGuard, usage: DiskUsage) -> None:
        self._file = file
        self._path = path
        self._target = target
        self._free_space = free_space
        self._usage = usage
        self._receiving = 0  # bytes that count as received
        self.head = b""  # the first 1024 bytes

    async def write(self, data: bytes) -> None:
        """Append data. Raises InsufficientStorage."""
        self._usage.require(len(data))
        self._free_space.take(len(data))
        self._usage.receiving += len(data)
        self._receiving += len(data)
        if len(self.head) < 1024:
            self.head += data[: 1024 - len(self.head)]
        await self._file.write(data)

    async def finish(self) -> None:
        """Sync the file to disk, and make it the input of its job."""
        await self._file.flush()
        await trio.to_thread.run_sync(partial(os.fsync, self._file.wrapped.fileno()))
        await self.replace_with(self._path)
        self.release()  # without a checkpoint in between, so that the bytes do not count twice
        await self._file.aclose()

    def release(self) -> None:
        """Stop counting the bytes as received."""
        self._usage.receiving -= self._receiving
        self._receiving = 0

    async def replace_with(self, path: Path) -> None:
        """Link an existing file as the input of the job. Raises FileNotFoundError."""
        new = new_input(self._target)

        def link() -> None:
            sync(self._path.parent)  # first, because the next daemon finds files without a job by this name
            self._target.parent.mkdir(exist_ok=True)
            new.unlink(missing_ok=True)
            os.link(path, new)
            os.replace(new, self._target)
            sync(self._target.parent, self._target.parent.parent)

        await self._usage.changing([self._target.parent], link)


def new_input(path: Path) -> Path:
    """Return the path of a new input, before it replaces the old one."""
    return path.with_name("input.new")
