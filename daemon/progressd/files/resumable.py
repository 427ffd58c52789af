"""Resumable uploads: their descriptions and the bytes that have arrived, in the state directory.

    partial/ID             the bytes received so far; missing once the upload has become a job
    partial/ID.json        the description of the upload; the upload exists as long as this file
    partial/ID.unverified  the size to which a daemon cuts the bytes at its start: the checksum of the rest is unknown

The id of an upload is also the id of its job. A file name from a client is never used as a path.
"""

import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio
from msgspec import Struct

from progressd.core.errors import NotFound
from progressd.core.events import Priority
from progressd.files.quota import DiskUsage, FreeSpaceGuard, disk_errors, files_of_jobs
from progressd.files.state_dir import make_directory
from progressd.system.fs import new_file, sync, write_all

HEAD: Final = 1024  # bytes in which the type of a file is recognized
MAX_DONE: Final = 10_000  # uploads that have become jobs, about 2 KB of memory each
DESCRIPTION: Final = ".json"
UNVERIFIED: Final = ".unverified"

log = structlog.get_logger(__name__)


class UploadInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The description of an upload: its size, and the job that it becomes."""

    id: str
    length: int  # bytes
    metadata: str  # the header Upload-Metadata, unchanged
    filename: str
    pipeline: str
    options: dict[str, object]
    labels: dict[str, str]
    priority: Priority = Priority.NORMAL
    batch_id: str | None = None
    batch_name: str = ""
    owner: str  # the key or address that submits the job
    key: str = ""  # the hash of the access key that may continue the upload


class ResumableUpload:
    """An upload. `offset` bytes of it are on the disk."""

    def __init__(self, info: UploadInfo, path: Path) -> None:
        self.info = info
        self.path = path
        self.offset = 0
        self.changed_at = time.time()
        self.done = False  # whether it has become a job
        self.appending = False  # whether a block is writing to it
        self.creating = trio.Lock()  # held while its job is created
        self._head: bytes | None = None

    @property
    def whole(self) -> bool:
        """Return whether all bytes have arrived."""
        return self.offset == self.info.length

    @property
    def head(self) -> bytes:
        """Return the first bytes. Blocks at the first call."""
        if self._head is None or len(self._head) < min(HEAD, self.offset):
            with open(self.path, "rb") as file:
                self._head = file.read(HEAD)
        return self._head


class UploadWriter:
    """Append bytes to an upload."""

    def __init__(self, upload: ResumableUpload, descriptor: int, free_space: FreeSpaceGuard, usage: DiskUsage) -> None:
        self.size = upload.offset  # bytes of the file
        self.verified = True  # whether the new bytes may be kept
        self._descriptor = descriptor
        self._free_space = free_space
        self._usage = usage

    async def write(self, data: bytes) -> None:
        """Append data. Raises InsufficientStorage."""
        self._usage.require(len(data))
        self._free_space.take(len(data))
        self._usage.receiving += len(data)
        self.size += len(data)
        await trio.to_thread.run_sync(write_all, self._descriptor, data)


class ResumableUploads:
    """All resumable uploads. Each method survives a crash at any point. Call `prepare` first."""

    def __init__(self, state_dir: Path, free_space: FreeSpaceGuard, usage: DiskUsage, lifetime: float) -> None:
        """Keep an upload for `lifetime` seconds after its last bytes."""
        self.lifetime = lifetime
        self._directory = state_dir / "partial"
        self._free_space = free_space
        self._usage = usage
        self._uploads: dict[str, ResumableUpload] = {}

    async def prepare(self) -> None:
        """Create the directory, and read the uploads of an earlier daemon. Raises SettingsError."""

        def read() -> list[ResumableUpload]:
            make_directory(self._directory)
            sync(self._directory.parent)
            return list(self._read())

        for upload in await trio.to_thread.run_sync(read):
            self._uploads[upload.info.id] = upload
            if not upload.done:
                self._usage.receiving += upload.offset
        await self.expire()

    def _read(self) -> Iterator[ResumableUpload]:
        names = dict(files_of_jobs(self._directory))
        for id_ in set(names.values()):
            path = self._directory / id_
            try:
                info = msgspec.json.decode(_description(path).read_bytes(), type=UploadInfo)
                upload = ResumableUpload(info, path)
                self._measure(upload)
                yield upload
            except (OSError, msgspec.MsgspecError, ValueError) as error:
                if not isinstance(error, FileNotFoundError):  # the creation was interrupted
                    kept = isinstance(error, OSError)  # the next daemon may be able to read it
                    event = "cannot read a resumable upload, kept" if kept else "invalid resumable upload deleted"
                    log.warning(event, upload_id=id_, error=str(error))
                    if kept:
                        continue
                for name in (name for name, of in names.items() if of == id_):
                    (self._directory / name).unlink(missing_ok=True)

    def _measure(self, upload: ResumableUpload) -> None:
        """Find what an earlier daemon has received. Raises OSError, ValueError."""
        try:
            with suppress(FileNotFoundError):
                size, end, _ = _unverified(upload.path).read_text().partition("\n")
                if end:  # otherwise the daemon was killed before it wrote any bytes that are not verified
                    os.truncate(upload.path, int(size))
                    sync(upload.path)
                _unverified(upload.path).unlink(missing_ok=True)
            found = upload.path.stat()
        except FileNotFoundError:
            upload.done, upload.offset = True, upload.info.length
            found = _description(upload.path).stat()
        else:
            upload.offset = found.st_size
        upload.changed_at = found.st_mtime
        if upload.offset > upload.info.length:
            raise ValueError("more bytes than announced")

    def find(self, id_: str) -> ResumableUpload | None:
        """Return an upload; None if it does not exist."""
        return self._uploads.get(id_)

    def all(self) -> list[ResumableUpload]:
        """Return all uploads, oldest first."""
        return list(self._uploads.values())

    def expires_at(self, upload: ResumableUpload) -> float:
        """Return when the upload is deleted if no more bytes arrive, in seconds since 1970."""
        return upload.changed_at + self.lifetime

    async def create(self, info: UploadInfo) -> ResumableUpload:
        """Begin an upload. Raises InsufficientStorage, for a full disk or quota."""
        self._free_space.require(info.length)
        self._usage.require(info.length)
        upload = ResumableUpload(info, self._directory / info.id)

        def write() -> None:
            try:
                _write(upload.path, b"")
                _write(_description(upload.path), msgspec.json.encode(info))
                sync(self._directory)
            except BaseException:
                self._unlink(upload.path)
                raise

        with disk_errors(), trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(write)
        self._uploads[info.id] = upload
        return upload

    @asynccontextmanager
    async def writing(self, upload: ResumableUpload, *, unverified: bool = False) -> AsyncGenerator[UploadWriter]:
        """Append to the upload. At the end of the block, even if it fails, the new bytes are synced to disk and count.

        With `unverified`, the new bytes are deleted instead, unless the block has set `verified`. Only one block may
        write to an upload at a time. Raises InsufficientStorage.
        """
        start = upload.offset
        if upload.done:
            raise NotFound(f"upload {upload.info.id} is complete")

        def begin() -> int:
            if unverified:
                _unverified(upload.path).unlink(missing_ok=True)
                _write(_unverified(upload.path), f"{start}\n".encode())
                sync(self._directory)
            descriptor = os.open(upload.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(descriptor, start)  # after a failed write
            return descriptor

        def end(kept: bool) -> int:
            try:
                if not kept:
                    os.ftruncate(descriptor, start)
                os.fsync(descriptor)
                _unverified(upload.path).unlink(missing_ok=True)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)

        with disk_errors():
            with trio.CancelScope(shield=True):
                descriptor = await trio.to_thread.run_sync(begin)
            writer = UploadWriter(upload, descriptor, self._free_space, self._usage)
            writer.verified = not unverified
            upload.appending = True
            try:
                yield writer
            finally:
                with trio.CancelScope(shield=True):
                    try:
                        upload.offset = await trio.to_thread.run_sync(end, writer.verified)
                        upload.changed_at = time.time()
                    finally:
                        upload.appending = False
                        self._usage.receiving -= writer.size - upload.offset

    def release(self, upload: ResumableUpload) -> None:
        """Stop counting the bytes of an upload, because they count as the input of its job now."""
        self._usage.receiving -= upload.offset

    def count(self, upload: ResumableUpload) -> None:
        """Count the bytes of an upload again, because its job was not created."""
        self._usage.receiving += upload.offset

    async def finish(self, upload: ResumableUpload) -> None:
        """Record that the upload has become a job. The caller has called `release`."""

        def finish() -> None:
            os.utime(_description(upload.path))
            upload.path.unlink(missing_ok=True)
            sync(self._directory)

        upload.done = True
        upload.changed_at = time.time()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(finish)

    async def remove(self, upload: ResumableUpload) -> None:
        """Delete an upload. Its job stays. No block may be writing to it."""
        if self._uploads.pop(upload.info.id, None) is None:
            return
        if not upload.done:
            self.release(upload)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._unlink, upload.path)

    async def expire(self) -> None:
        """Delete the uploads to which nothing was added for `lifetime`.

        Those to which a request is adding bytes, and whole ones that are no job yet, are kept.

        Of those that have become jobs, the newest MAX_DONE are kept: a client may ask for them again.
        """
        now, count = time.time(), 0
        done = [upload for upload in self.all() if upload.done]
        for upload in sorted(done, key=lambda upload: upload.changed_at)[:-MAX_DONE]:
            await self.remove(upload)
        for upload in self.all():
            if self.expires_at(upload) <= now and (upload.done or not (upload.whole or upload.appending)):
                count += not upload.done
                await self.remove(upload)
        if count:
            log.info("expired uploads deleted", count=count)

    def _unlink(self, path: Path) -> None:
        """Delete the files of an upload. After a crash in between, `prepare` deletes the rest."""
        for one in (_description(path), path, _unverified(path)):
            one.unlink(missing_ok=True)
        sync(self._directory)


def _description(path: Path) -> Path:
    return path.with_name(path.name + DESCRIPTION)


def _unverified(path: Path) -> Path:
    return path.with_name(path.name + UNVERIFIED)


def _write(path: Path, data: bytes) -> None:
    """Create a file, synced to disk."""
    descriptor = new_file(path)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
