"""The files of jobs in the state directory: uploads, results, and the stderr of pipelines.

    uploads/JOB_ID         an upload in progress; then a link to the input, until the job is stored
    uploads/JOB_ID.deleted marks a deleted job whose files are not deleted yet
    jobs/JOB_ID/input      the uploaded file
    jobs/JOB_ID/work-N/    the working directory of attempt N
    jobs/JOB_ID/output     the complete result of a successful attempt
    jobs/JOB_ID/stderr     the stderr of the last attempt
    jobs/JOB_ID/log/       what the job has written, see `log_file`
    partial/               uploads that can be resumed, see `resumable`

A file name from a client is never used as a path.
"""

import io
import os
import shutil
import stat
from collections.abc import AsyncGenerator, Callable, Collection, Generator
from contextlib import aclosing, asynccontextmanager, closing, suppress
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import structlog
import trio

from progressd.config.settings import Limits, LogSettings, StoreSettings
from progressd.core.errors import Conflict, StoreFailed, Unavailable
from progressd.files.job_logs import JobLogs
from progressd.files.quota import LOG, DiskUsage, FreeSpaceGuard, directories_of_jobs, disk_errors, files_of_jobs
from progressd.files.resumable import ResumableUploads
from progressd.files.state_dir import make_directory
from progressd.store.base import Store
from progressd.system.fs import sync

ORPHAN_MIN_AGE: Final = 3600.0  # seconds that files without a job are kept: an upload precedes its job
DELETE_BATCH: Final = 10  # jobs whose files are deleted at once; no upload can begin in this time

log = structlog.get_logger(__name__)


class Upload:
    """An upload in progress, until its file is stored as the input of its job."""

    def __init__(
        self,
        file: "trio._file_io.AsyncIOWrapper[io.BufferedWriter]",
        path: Path,
        target: Path,
        free_space: FreeSpaceGuard,
        usage: DiskUsage,
    ) -> None:
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
        self.release()  # no checkpoint in between, so that the bytes are not counted twice
        await self._file.aclose()

    def release(self) -> None:
        """Stop counting these bytes as those of an upload."""
        self._usage.receiving -= self._receiving
        self._receiving = 0

    async def replace_with(self, path: Path) -> None:
        """Link an existing file as the input of the job. Raises FileNotFoundError."""

        def link() -> None:
            sync(self._path.parent)  # first, because the next daemon finds files without a job by this name
            self._target.parent.mkdir(exist_ok=True)
            os.link(path, self._target)
            sync(self._target.parent, self._target.parent.parent)

        await self._usage.changing([self._target.parent], link)


class JobFiles:
    """The files of jobs. Each method survives a crash at any point. Call `prepare` first."""

    def __init__(
        self,
        state_dir: Path,
        min_free_bytes: int = 0,
        max_stored_bytes: int = 0,
        max_log_bytes: int = LogSettings().max_bytes_per_job,
        upload_retention: float = StoreSettings().upload_retention,
    ) -> None:
        """Set limits, 0 for no limit: the free space to leave on the disk, and the total size of the files of jobs.

        `max_log_bytes`: the size of the log of one job. `upload_retention`: seconds that unfinished resumable uploads
        are kept.
        """
        self._uploads = state_dir / "uploads"
        self._jobs = state_dir / "jobs"
        self._free_space = FreeSpaceGuard(state_dir, min_free_bytes)
        self.usage = DiskUsage(self._jobs, max_stored_bytes)
        self.logs = JobLogs(self._jobs, self.usage, self._free_space, max_log_bytes)
        self.resumable = ResumableUploads(state_dir, self._free_space, self.usage, upload_retention)
        self._receiving = set[str]()  # jobs whose input is being received
        self._settling = trio.Lock()

    def apply_settings(self, limits: Limits, log_settings: LogSettings) -> None:
        """Apply reloaded limits."""
        self.logs.max_bytes = log_settings.max_bytes_per_job
        self._free_space.min_free = limits.min_free_bytes
        self.usage.max_bytes = limits.max_stored_bytes

    def input(self, job_id: str) -> Path:
        """Return the path of the input."""
        return self._jobs / job_id / "input"

    def output(self, job_id: str) -> Path:
        """Return the path of the result."""
        return self._jobs / job_id / "output"

    def require(self, size: int) -> None:
        """Check that `size` bytes can be stored. Raises InsufficientStorage."""
        self._free_space.require(size)
        self.usage.require(size)

    async def prepare(self, store: Store) -> None:
        """Create the directories, and `settle` the files of an earlier daemon. Raises SettingsError."""

        def make() -> None:
            for directory in (self._uploads, self._jobs):
                make_directory(directory)
            sync(self._uploads.parent)

        await trio.to_thread.run_sync(make)
        await self.settle(store)
        await self.resumable.prepare()

    async def settle(self, store: Store) -> None:
        """Delete uploads that never became jobs, and the files of deleted jobs. Uploads in progress are kept.

        Call this only if no commit of the store is undecided: at a start, or once the store accepts changes again.
        """
        async with self._settling:
            names = await trio.to_thread.run_sync(lambda: dict(files_of_jobs(self._uploads)))
            names = {name: job_id for name, job_id in names.items() if job_id not in self._receiving}
            left = await self._delete(await self._unknown(names.values(), store))
            for name, job_id in names.items():
                if job_id not in left:
                    (self._uploads / name).unlink(missing_ok=True)

    @asynccontextmanager
    async def deletion(self, job_id: str) -> AsyncGenerator[None]:
        """Delete the files of a job at the end of the block, which deletes the job. After a crash, `settle` does
        this."""
        with suppress(OSError):
            await trio.to_thread.run_sync(partial(self._mark, job_id))
        yield
        await self.remove([job_id])

    @asynccontextmanager
    async def upload(self, job_id: str) -> AsyncGenerator[Upload]:
        """Receive the input of a new job. The file is deleted if the block fails.

        If the failure leaves the commit of the job undecided, the file is kept until `settle`.

        Raises:
            InsufficientStorage: for a full disk.
            Unavailable: while the commit of the job is undecided.
            Conflict: if the job already has files. They are not changed.
        """
        async with self._settling:
            self._receiving.add(job_id)
        try:
            async with self._received(job_id) as upload:
                yield upload
        finally:
            self._receiving.discard(job_id)

    @asynccontextmanager
    async def _received(self, job_id: str) -> AsyncGenerator[Upload]:
        path = self._uploads / job_id
        if path.exists():
            raise Unavailable("it is not known yet whether this job is stored: send the file again later")
        if self.input(job_id).parent.exists():
            raise Conflict(f"job {job_id} already has files")
        with disk_errors():  # includes closing the file, which retries a failed write
            async with await trio.open_file(path, "xb") as file:
                upload = Upload(file, path, self.input(job_id), self._free_space, self.usage)
                try:
                    yield upload
                except BaseException as error:
                    if not (isinstance(error, StoreFailed) and error.undecided):
                        with trio.CancelScope(shield=True):
                            left = await self._delete([job_id])
                        if not left:  # otherwise the next daemon removes these files
                            path.unlink()
                    raise
                finally:
                    upload.release()
                with suppress(OSError):  # the job is stored, and `settle` can remove the file later
                    path.unlink()

    @asynccontextmanager
    async def copied_input(self, from_job: str, to_job: str) -> AsyncGenerator[None]:
        """Use the input of `from_job` as the input of the new job `to_job`. Raises Conflict if that input is gone."""
        async with self.upload(to_job) as upload:
            try:
                await upload.replace_with(self.input(from_job))
            except FileNotFoundError:
                raise Conflict(f"the input of job {from_job} is gone") from None
            yield

    @asynccontextmanager
    async def attempt(self, job_id: str, number: int) -> AsyncGenerator[Path]:
        """Yield an empty working directory, which is removed at the end."""
        work = self._jobs / job_id / f"work-{number}"

        def discard() -> None:
            _remove_directory(work)
            with suppress(OSError):
                work.parent.rmdir()  # succeeds only if the job was deleted; otherwise the directory contains the input

        await self.discard_attempts([job_id])
        await trio.to_thread.run_sync(partial(work.mkdir, parents=True))
        try:
            yield work
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(discard)

    async def discard_attempts(self, job_ids: Collection[str]) -> None:
        """Delete the working directories that a killed daemon left."""

        def discard() -> None:
            for job_id in job_ids:
                for work in (self._jobs / job_id).glob("work-*"):
                    _remove_directory(work)

        await trio.to_thread.run_sync(discard)

    async def keep_output(self, job_id: str, result: Path) -> None:
        """Make a file the result of the job, synced to disk. Raises FileNotFoundError if it is not a regular file."""

        def keep() -> None:
            if not stat.S_ISREG(result.lstat().st_mode):  # such as a directory or a symbolic link
                raise FileNotFoundError(f"{result} is not a file")
            sync(result)
            os.replace(result, self.output(job_id))
            sync(self.output(job_id).parent)

        await self.usage.changing([self.output(job_id).parent], keep)

    async def keep_stderr(self, job_id: str, text: bytes) -> None:
        """Store the stderr of an attempt. It replaces the stderr of the previous attempt."""
        path = self._jobs / job_id / "stderr"
        await self.usage.changing([path.parent], partial(path.write_bytes, text))

    async def older_than(self, before: datetime, batch: int) -> AsyncGenerator[list[str]]:
        """Yield jobs whose directories are older than `before`, `batch` at a time. The caller closes the generator."""

        async with aclosing(self._selected(lambda entry: entry.stat().st_mtime, before, batch)) as steps:
            async for found in steps:
                yield found

    async def with_logs_older_than(self, before: datetime, batch: int) -> AsyncGenerator[list[str]]:
        """Yield jobs with a log to which nothing was written since `before`, as `older_than` does."""

        def written(entry: os.DirEntry[str]) -> float:
            with os.scandir(os.path.join(entry, LOG)) as files:
                return max([file.stat().st_mtime for file in files], default=0)

        async with aclosing(self._selected(written, before, batch)) as steps:
            async for found in steps:
                yield found

    async def _selected(
        self, time_of: Callable[[os.DirEntry[str]], float], before: datetime, batch: int
    ) -> AsyncGenerator[list[str]]:
        """Yield the jobs with a time before `before`. The caller closes the generator."""

        def look() -> Generator[str]:
            with closing(directories_of_jobs(self._jobs)) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError, NotADirectoryError):  # perhaps deleted during the iteration
                        if time_of(entry) < before.timestamp():
                            yield entry.name

        with closing(look()) as names:
            while found := await trio.to_thread.run_sync(lambda: list(islice(names, batch))):
                yield found

    async def remove_logs(self, job_ids: Collection[str]) -> None:
        """Delete the logs of these jobs. Raises OSError."""
        async with self.logs.deleting(job_ids):
            directories = [self._jobs / job_id for job_id in job_ids]

            def delete() -> None:
                for directory in directories:
                    with suppress(FileNotFoundError):
                        shutil.rmtree(directory / LOG)
                    with suppress(OSError):
                        directory.rmdir()  # unless it has other files

            await self.usage.changing(directories, delete)

    async def remove(self, job_ids: Collection[str]) -> None:
        """Delete all files of the jobs durably, even across a power cut. Uploads in progress are kept."""
        names = list(job_ids)
        for start in range(0, len(names), DELETE_BATCH):
            async with self._settling:
                await self._delete(set(names[start : start + DELETE_BATCH]) - self._receiving)

    async def remove_unknown(self, job_ids: Collection[str], store: Store) -> int:
        """Delete the files of jobs that are neither stored nor being received. Return the number of these jobs."""
        async with self._settling:
            unknown = await self._unknown(job_ids, store)
            return len(unknown) - len(await self._delete(unknown))

    async def _unknown(self, job_ids: Collection[str], store: Store) -> set[str]:
        """Return the jobs that are neither stored nor being received. No upload can begin during the query."""
        ids = set(job_ids) - self._receiving
        return ids.difference(await store.known(ids)) if ids else ids

    async def _delete(self, job_ids: Collection[str]) -> Collection[str]:
        """Delete the files of jobs. Mark the jobs for which this failed, for the next daemon, and return them."""
        failed = dict[str, OSError]()

        def delete() -> None:
            there = [path for path in directories if path.exists()]
            for path in there:
                try:
                    shutil.rmtree(path)
                except OSError as error:
                    if path.exists():
                        failed[path.name] = error
            if there:
                sync(self._jobs)

        directories = [self._jobs / job_id for job_id in job_ids]
        try:
            async with self.logs.deleting(job_ids):
                await self.usage.changing(directories, delete)
        except OSError as error:
            failed.update(dict.fromkeys(job_ids, error))
        if failed:
            job_id, reason = next(iter(failed.items()))
            log.warning(
                "files not deleted, will retry at the next start", job_id=job_id, jobs=len(failed), error=str(reason)
            )
        for job_id in job_ids:
            if job_id in failed:
                self._mark(job_id)
            else:
                self._marker(job_id).unlink(missing_ok=True)
        return failed

    def _marker(self, job_id: str) -> Path:
        return self._uploads / f"{job_id}.deleted"

    def _mark(self, job_id: str) -> None:
        with suppress(OSError):  # on a full disk, the files can still be deleted
            os.mknod(self._marker(job_id), 0o600)  # needs no descriptor


def _remove_directory(path: Path) -> None:
    """Remove a directory as far as possible. An empty one can be removed while no descriptors are left."""
    try:
        path.rmdir()
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
