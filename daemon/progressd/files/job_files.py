"""The files of jobs in the state directory: uploads, results, and what a pipeline wrote to its standard error.

    uploads/JOB_ID         being received; after that a link to the input, until the job is in the store
    uploads/JOB_ID.again   being received once more, while nobody knows whether the job will be in the store
    uploads/JOB_ID.deleted of a job that is deleted, until its files are
    jobs/JOB_ID/input      what was uploaded
    jobs/JOB_ID/work-N/    where attempt N runs and writes
    jobs/JOB_ID/output     the result, whole: only the end of a successful attempt puts it there
    jobs/JOB_ID/stderr     what the last attempt complained of

A file name that a client gave is never a path here.
"""

import errno
import os
import shutil
import stat
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Generator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import structlog
import trio

from progressd.core.errors import Conflict, InsufficientStorage, StoreFailed, Unavailable
from progressd.files.quota import DiskUsage, FreeSpaceGuard, directories_of_jobs, files_of_jobs
from progressd.files.state_dir import make_directory
from progressd.files.upload import Upload, new_input
from progressd.store.base import Store
from progressd.system.fs import sync
from progressd.system.transient import FULL, passes

ORPHAN_MIN_AGE: Final = 3600.0  # seconds at least that files without a job are left: an upload comes before its job
DELETE_BATCH: Final = 10  # jobs whose files are deleted while no upload can begin

log = structlog.get_logger(__name__)


class JobFiles:
    """Paths, and the steps that must survive a crash at any point between them. `prepare` comes first."""

    def __init__(self, state_dir: Path, min_free_bytes: int = 0, max_stored_bytes: int = 0) -> None:
        """What an upload has to leave free on the disk, and how much all files of jobs may take, 0 for any number."""
        self._uploads = state_dir / "uploads"
        self._jobs = state_dir / "jobs"
        self.headroom = FreeSpaceGuard(state_dir, min_free_bytes)
        self.stored = DiskUsage(self._jobs, max_stored_bytes)
        self._receiving = Counter[str]()
        self._left = set[str]()  # jobs whose files were to be deleted and are not
        self._settling = trio.Lock()

    def input(self, job_id: str) -> Path:
        """Where the input is."""
        return self._jobs / job_id / "input"

    def output(self, job_id: str) -> Path:
        """Where the result is, once there is one."""
        return self._jobs / job_id / "output"

    def require(self, size: int) -> None:
        """Whether so many bytes may come in. Raises InsufficientStorage."""
        self.headroom.require(size)
        self.stored.require(size)

    async def prepare(self, store: Store) -> None:
        """Make the directories, and `settle` what an earlier daemon has left. Raises SettingsError."""

        def make() -> None:
            for directory in (self._uploads, self._jobs):
                make_directory(directory)
            sync(self._uploads.parent)

        await trio.to_thread.run_sync(make)
        await self.settle(store)

    async def settle(self, store: Store) -> None:
        """Clear away uploads that never became jobs, and what is left of jobs that were deleted.

        Not what is being received, and only when the store tells for sure which jobs it has: at the start, or once it
        takes changes again.
        """
        async with self._settling:
            names = await trio.to_thread.run_sync(lambda: dict(files_of_jobs(self._uploads)))
            names = {name: job_id for name, job_id in names.items() if not self._receiving[job_id]}
            await self._delete_unknown(names.values(), store)
            for name, job_id in names.items():
                if job_id in self._left:
                    continue
                new_input(self.input(job_id)).unlink(missing_ok=True)  # of a job that was sent again, and is there
                (self._uploads / name).unlink(missing_ok=True)

    @asynccontextmanager
    async def deletion(self, job_id: str) -> AsyncGenerator[None]:
        """Within this a job is deleted, and at the end its files are; after a kill, `settle` sees to that."""
        with suppress(OSError):
            await trio.to_thread.run_sync(partial(self._mark, job_id))
        yield
        await self.remove([job_id])

    @asynccontextmanager
    async def upload(self, job_id: str) -> AsyncGenerator[Upload]:
        """Receive the input of a job that does not exist yet. Unless it exists at the end, nothing is left behind.

        But where it is undecided whether the store has the job, `settle` finds that out, and all is left to it until
        then: also what is sent again, and does not become a job either. Raises
        InsufficientStorage, Unavailable, and Conflict where there are files of such a job, which are left as they are.
        """
        async with self._settling:
            self._receiving[job_id] += 1
        try:
            async with self._received(job_id) as upload:
                yield upload
        finally:
            self._receiving -= Counter([job_id])

    @asynccontextmanager
    async def _received(self, job_id: str) -> AsyncGenerator[Upload]:
        marker = self._uploads / job_id
        with _disk_told():  # outside of the file, since closing it tries once more to write what did not fit
            again = marker.exists()
            path = self._uploads / f"{job_id}.again" if again else marker
            if again:
                path.unlink(missing_ok=True)
            elif self.input(job_id).parent.exists():
                raise Conflict(f"there are files of a job {job_id} already")
            async with await trio.open_file(path, "xb") as file:
                upload = Upload(file, path, self.input(job_id), self.headroom, self.stored)
                try:
                    yield upload
                except BaseException as error:
                    if not again and not (isinstance(error, StoreFailed) and error.undecided):
                        with trio.CancelScope(shield=True):
                            left = await self._delete([job_id])
                        if not left:  # else the next daemon knows by this what is to be removed
                            path.unlink()
                    raise
                finally:
                    upload.release()
                with suppress(OSError):  # of a job that there is: `settle` does it later
                    path.unlink()
                    marker.unlink(missing_ok=True)

    @asynccontextmanager
    async def copied_input(self, from_job: str, to_job: str) -> AsyncGenerator[None]:
        """Give a job that does not exist yet the input of another. Raises Conflict when that is gone."""
        async with self.upload(to_job) as upload:
            try:
                await upload.replace_with(self.input(from_job))
            except FileNotFoundError:
                raise Conflict(f"the input of job {from_job} is gone") from None
            yield

    @asynccontextmanager
    async def attempt(self, job_id: str, number: int) -> AsyncGenerator[Path]:
        """An empty directory to run in, gone afterwards."""
        work = self._jobs / job_id / f"work-{number}"

        def discard() -> None:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                work.parent.rmdir()  # of a job that was deleted while this wrote; any other has its input there

        await self.discard_attempts([job_id])
        await trio.to_thread.run_sync(partial(work.mkdir, parents=True))
        try:
            yield work
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(discard)

    async def discard_attempts(self, job_ids: Collection[str]) -> None:
        """Delete what the attempts of a daemon that was killed have left half done."""

        def discard() -> None:
            for job_id in job_ids:
                for left_over in (self._jobs / job_id).glob("work-*"):
                    shutil.rmtree(left_over, ignore_errors=True)

        await trio.to_thread.run_sync(discard)

    async def keep_output(self, job_id: str, result: Path) -> None:
        """Make a file the result of the job, synced. Raises FileNotFoundError when there is no such file."""

        def keep() -> None:
            if not stat.S_ISREG(result.lstat().st_mode):  # a directory, or a link to who knows what
                raise FileNotFoundError(f"{result} is not a file")
            sync(result)
            os.replace(result, self.output(job_id))
            sync(self.output(job_id).parent)

        await self.stored.changing([self.output(job_id).parent], keep)

    async def keep_stderr(self, job_id: str, text: bytes) -> None:
        """Keep what an attempt complained of, instead of what the one before did."""
        path = self._jobs / job_id / "stderr"
        await self.stored.changing([path.parent], partial(path.write_bytes, text))

    async def older_than(self, before: datetime, most: int) -> AsyncGenerator[list[str]]:
        """The jobs that have files, and no newer ones than of then, `most` at a time; to be closed by its user."""

        def look() -> Generator[str]:
            with closing(directories_of_jobs(self._jobs)) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # deleted just now
                        if entry.stat().st_mtime < before.timestamp():
                            yield entry.name

        with closing(look()) as names:
            while step := await trio.to_thread.run_sync(lambda: list(islice(names, most))):
                yield step

    async def remove(self, job_ids: Collection[str]) -> set[str]:
        """Delete all files of the jobs, for good: a power cut does not bring them back. The jobs where that failed.

        As without descriptors; these are marked for the next daemon, and `remove_left` tries again. No file comes in
        meanwhile, and what is being received already is left alone: it may be for a new job of the same name.
        """
        names, left = list(job_ids), set[str]()
        for start in range(0, len(names), DELETE_BATCH):
            some = set(names[start : start + DELETE_BATCH])
            async with self._settling:
                spared = {job_id for job_id in some if self._receiving[job_id]}
                self._left |= spared
                left |= spared | await self._delete(some - spared)
        return left

    async def remove_left(self, store: Store) -> int:
        """Delete what `remove` has left, unless it is a job's again; of how many jobs there are files still."""
        async with self._settling:
            await self._delete_unknown(self._left, store)
        return len(self._left)

    async def remove_unknown(self, job_ids: Collection[str], store: Store) -> int:
        """Delete the files of those that are no jobs of the store's, nor being received; how many went."""
        async with self._settling:
            return await self._delete_unknown(job_ids, store)

    async def _delete_unknown(self, job_ids: Collection[str], store: Store) -> int:
        ids = {job_id for job_id in job_ids if not self._receiving[job_id]}  # none comes in while the store is asked
        known = await store.known(ids) if ids else ()
        for job_id in self._left.intersection(known):
            self._marker(job_id).unlink(missing_ok=True)
        self._left.difference_update(known)
        ids.difference_update(known)
        return len(ids) - len(await self._delete(ids))

    async def _delete(self, job_ids: Collection[str]) -> set[str]:
        directories = [self._jobs / job_id for job_id in job_ids]
        left = set(job_ids)

        def delete() -> None:
            there = [path for path in directories if path.exists()]
            for path in there:
                shutil.rmtree(path, ignore_errors=True)
            if there:
                sync(self._jobs)
            left.intersection_update([path.name for path in there if path.exists()])
            if left:
                shutil.rmtree(self._jobs / min(left))  # for its error, which tells why

        try:
            await self.stored.changing(directories, delete)
        except OSError as error:
            first = min(left, default=None)
            log.warning("files cannot be deleted for now", job_id=first, jobs=len(left), error=str(error))
        self._left = self._left.difference(job_ids) | left
        for job_id in job_ids:
            if job_id in left:
                self._mark(job_id)
            else:
                self._marker(job_id).unlink(missing_ok=True)
        return left

    def _marker(self, job_id: str) -> Path:
        return self._uploads / f"{job_id}.deleted"

    def _mark(self, job_id: str) -> None:
        with suppress(OSError):  # on a full disk it can be deleted all the same
            os.mknod(self._marker(job_id), 0o600)  # which takes no descriptor


@contextmanager
def _disk_told() -> Iterator[None]:
    """Tell the client what is wrong with the disk, where it is not the client's fault nor a mistake of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InsufficientStorage("there is no space left for this on the daemon's disk") from error
        if error.errno == errno.EFBIG:
            raise InsufficientStorage("the daemon may not write files as large as this") from error
        if passes(error):
            raise Unavailable(f"the daemon cannot keep files for now ({error.strerror})") from error
        raise
