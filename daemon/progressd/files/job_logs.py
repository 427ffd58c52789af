"""The logs of jobs: one writer for all, and watchers that read at their own pace.

Lines of logs do not change jobs: they have no cursor, and they are not in the store. Producers wait until their lines
are written. So the bounded queue slows only producers. The writer is a thread, because a write may have to wait for the
disk. If the disk is full, lines are lost, and a note in the log gives the number of bytes.
"""

from collections import deque
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import structlog
import trio

from progressd.core.errors import InsufficientStorage, NotFound
from progressd.core.events import LogStream, ReportedLog
from progressd.files.log_file import LogFile, Piece, Record, position_of_tail, position_since, read, rfc3339
from progressd.files.quota import LOG, DiskUsage, FreeSpaceGuard
from progressd.system.condition import Condition
from progressd.system.output_buffer import OVERHEAD

MAX_QUEUED: Final = 1 << 20  # bytes of lines and overhead that wait for the writer, in addition to one event
RATE: Final = 8 << 20  # bytes a second that are written for all jobs together, with the overhead of records
UNPACED: Final = 8192  # bytes in one turn that the rate does not delay
MAX_RECENT: Final = 1 << 18  # bytes of each watched log that are also in memory, with the overhead of records
MAX_OPEN: Final = 1000  # logs whose state is in memory, in addition to the watched ones

log = structlog.get_logger(__name__)


def record_of(reported: ReportedLog) -> Record:
    """Return the record of an event. A time outside of the years 1 to 9999 in UTC becomes the current time."""
    time = datetime.now(UTC)
    if reported.time is not None:
        with suppress(OverflowError):
            time = reported.time.astimezone(UTC)
    text = reported.text.encode("utf-8", "replace")
    if not reported.partial and not text.endswith(b"\n"):
        text += b"\n"
    return Record(rfc3339(time), reported.stream, text, reported.source or "", reported.seq)


def note(text: str) -> Record:
    """Return a remark about a log."""
    return Record(rfc3339(datetime.now(UTC)), LogStream.NOTE, f"{text}\n".encode())


class Chunk(NamedTuple):
    """Records for a watcher. `missed`: the number of bytes before them that the watcher does not receive."""

    pieces: Sequence[Piece]
    missed: int


class _OpenLog:
    """The state of one log in memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file: LogFile | None = None  # None until it is opened
        self.deleted = False
        self.lost = 0  # bytes that could not be written, not yet noted
        self.watchers = 0
        self.recent = deque[Piece]()
        self.recent_size = 0
        self.changed = Condition()

    @property
    def end(self) -> int:
        return 0 if self.file is None else self.file.end

    def publish(self, pieces: Sequence[Piece]) -> None:
        """Keep new records for the watchers, and wake them."""
        if not self.watchers:
            return
        self.recent.extend(pieces)
        self.recent_size += sum(len(piece.text) + OVERHEAD for piece in pieces)
        while self.recent_size > MAX_RECENT and len(self.recent) > 1:
            self.recent_size -= len(self.recent.popleft().text) + OVERHEAD
        self.changed.notify()

    def unwatch(self) -> None:
        """Note that a watcher has ended, and free the memory that only watchers need."""
        self.watchers -= 1
        if not self.watchers:
            self.recent.clear()
            self.recent_size = 0


class _Write:
    """Records of one producer, waiting for the writer."""

    __slots__ = ("cost", "error", "log", "records", "size", "written")

    def __init__(self, log: _OpenLog, records: Sequence[Record]) -> None:
        self.log = log
        self.records = records
        self.size = sum(len(record.text) for record in records)
        self.cost = self.size + OVERHEAD * len(records)
        self.written = trio.Event()
        self.error: NotFound | None = None


class JobLogs:
    """The logs of all jobs. The task `run` writes."""

    def __init__(self, jobs: Path, usage: DiskUsage, free_space: FreeSpaceGuard, max_bytes: int) -> None:
        """Keep the logs below `jobs`. `max_bytes`: the limit for one log."""
        self.max_bytes = max_bytes
        self._jobs = jobs
        self._usage = usage
        self._free_space = free_space
        self._open = dict[str, _OpenLog]()  # the longest unused first
        self._all = WeakValueDictionary[str, _OpenLog]()  # these, and others that are still referenced
        self._waiting = list[_Write]()
        self._queued = 0  # bytes
        self._changed = Condition()
        self._lock = trio.Lock()  # held while files of logs change
        self._thread = trio.CapacityLimiter(1)
        self._failing = ""  # why lines are lost, as it was logged

    def directory(self, job_id: str) -> Path:
        """Return the directory of a log, which may not exist."""
        return self._jobs / job_id / LOG

    def open(self, job_id: str) -> _OpenLog:
        """Return the log of a job that exists. `append` rejects it once it is deleted, even if it is opened again."""
        if (state := self._all.get(job_id)) is None:
            state = self._all[job_id] = _OpenLog(self.directory(job_id))
        return state

    async def append(self, job_id: str, records: Sequence[Record], opened: _OpenLog | None = None) -> None:
        """Add records to the log of a job, and wait until they are written. Raises NotFound for a deleted log.

        `opened`: the log, if it was opened earlier. Otherwise, the job must exist now.
        """
        state = opened or self.open(job_id)
        await self._changed.wait_for(lambda: self._queued < MAX_QUEUED)
        write = self._queue(job_id, state, records)
        await write.written.wait()
        if write.error is not None:
            raise write.error

    def append_nowait(self, job_id: str, records: Sequence[Record]) -> bool:
        """Add records without waiting. Return False if the queue is full."""
        if self._queued >= MAX_QUEUED:
            return False
        self._queue(job_id, self.open(job_id), records)
        return True

    async def written(self) -> None:
        """Wait until all records that were added so far are written."""
        for write in tuple(self._waiting[-1:]):
            await write.written.wait()
        async with self._lock:
            pass

    def _queue(self, job_id: str, state: _OpenLog, records: Sequence[Record]) -> _Write:
        if not state.deleted:
            self._used(job_id, state)
        write = _Write(state, records)
        self._waiting.append(write)
        self._queued += write.cost
        self._changed.notify()
        return write

    def _used(self, job_id: str, state: _OpenLog) -> None:
        self._open.pop(job_id, None)
        self._open[job_id] = state

    async def run(self) -> None:
        """Write records until cancelled, and then the waiting ones."""
        try:
            while True:
                await self._changed.wait_for(lambda: self._waiting)
                began, cost = trio.current_time(), await self._write_waiting()
                if cost > UNPACED:
                    await trio.sleep_until(began + cost / RATE)
                self._close_unused()
        finally:
            with trio.CancelScope(shield=True):
                await self._write_waiting()

    async def _write_waiting(self) -> int:
        async with self._lock:
            writes, self._waiting = self._waiting, []
            results = await trio.to_thread.run_sync(self._write_all, writes, limiter=self._thread) if writes else []
        for result in results:
            self._wrote(*result)
        cost = sum(write.cost for write in writes)
        self._queued -= cost
        self._changed.notify()
        return cost

    def _write_all(self, writes: Sequence[_Write]) -> list[tuple[_Write, Sequence[Piece], int, str]]:
        """Write in a thread. Return the written records of each write, by how much its log has grown, and an error."""
        results = list[tuple[_Write, Sequence[Piece], int, str]]()
        for write in writes:
            pieces, grown, error = list[Piece](), 0, ""
            if write.log.deleted:
                write.error = NotFound(f"no job {write.log.directory.parent.name}")
            else:
                try:
                    pieces, grown = self._write(write)
                except (OSError, InsufficientStorage) as failure:
                    error = getattr(failure, "strerror", None) or str(failure)
                    write.log.lost += write.size
            results.append((write, pieces, grown, error))
        return results

    def _write(self, write: _Write) -> tuple[list[Piece], int]:
        """Write the records that are not written yet. Return them, and by how many bytes the log has grown."""
        state = write.log
        if state.file is None:
            state.file = LogFile(state.directory, self.max_bytes)
        file = state.file
        file.max_bytes = self.max_bytes
        last, records = dict[str, int](), list[Record]()
        for record in write.records:
            if not record.source or record.seq > last.get(record.source, file.last.get(record.source, 0)):
                records.append(record)
                last[record.source] = record.seq
        if not records:
            return [], 0
        if state.lost:
            records = [note(f"{state.lost} bytes of the log are lost: they could not be written"), *records]
        self._usage.require(write.size)
        self._free_space.take(write.size)
        before = file.size
        pieces = file.append(records)
        state.lost = 0
        return pieces, file.size - before

    def _wrote(self, write: _Write, pieces: Sequence[Piece], grown: int, error: str) -> None:
        if grown:
            self._usage.add(write.log.directory.parent.name, grown)
        if error and not self._failing:
            log.warning("lines of the logs of jobs are lost", error=error)
        elif self._failing and pieces and not error:
            log.info("the logs of jobs are written again")
        if error or pieces:
            self._failing = error
        write.log.publish(pieces)
        write.written.set()

    def _close_unused(self) -> None:
        """Forget the state of the logs that were not used for longest. Writes in the queue keep theirs."""
        if len(self._open) <= MAX_OPEN or self._waiting:
            return
        unused = [job_id for job_id, state in self._open.items() if not state.watchers and not state.lost]
        for job_id in unused[: len(self._open) - MAX_OPEN]:
            del self._open[job_id]

    @asynccontextmanager
    async def deleting(self, job_ids: Collection[str]) -> AsyncGenerator[None]:
        """Write nothing inside the block, in which the logs of these jobs are deleted. Their watchers end."""
        async with self._lock:
            for job_id in job_ids:
                self._open.pop(job_id, None)
                if (state := self._all.pop(job_id, None)) is not None:
                    state.deleted = True
                    state.changed.notify()
            yield

    async def watch(self, job_id: str, *, position: int | None = None, tail: int = 0, since: str = "") -> "LogWatcher":
        """Return a watcher from a position on, or from a time, or from the last lines."""
        if not self._lock.locked():
            self._close_unused()
        state = self.open(job_id)
        self._used(job_id, state)
        state.watchers += 1
        try:
            async with self._lock:
                if state.file is None:
                    state.file = await trio.to_thread.run_sync(LogFile, state.directory, self.max_bytes)
            if position is None:
                position = await trio.to_thread.run_sync(_start, state.directory, tail, since)
        except BaseException:
            state.unwatch()
            raise
        return LogWatcher(state, min(position, state.end))


def _start(directory: Path, tail: int, since: str) -> int:
    return position_since(directory, since) if since else position_of_tail(directory, tail)


class LogWatcher:
    """Reads one log. `position`: the offset after the last record that was read. Close it at the end."""

    def __init__(self, state: _OpenLog, position: int) -> None:
        self.position = position
        self._finished = False  # no further lines are expected
        self._stopped = False
        self._log = state

    def close(self) -> None:
        """Free the memory that only watchers need."""
        self._log.unwatch()

    def finish(self) -> None:
        """End the reading at the end of the log."""
        self._finished = True
        self._log.changed.notify()

    def stop(self) -> None:
        """End the reading at once."""
        self._stopped = True
        self._log.changed.notify()

    @property
    def end(self) -> int:
        """Return the offset of the next record that will be written."""
        return self._log.end

    @property
    def deleted(self) -> bool:
        """Return whether the log was deleted together with its job."""
        return self._log.deleted

    @property
    def at_end(self) -> bool:
        """Return whether there is nothing to read at the moment."""
        return self.position >= self._log.end

    async def read(self) -> Chunk | None:
        """Wait for records, and return some; None at the end.

        A watcher that is slower than the writer misses the records that are deleted from the middle of the log.
        """
        state, before = self._log, self.position
        while True:
            await state.changed.wait_for(lambda: not self.at_end or self._finished or self._stopped or state.deleted)
            if self.at_end or self._stopped or state.deleted:
                return None
            pieces = self._recent() or await trio.to_thread.run_sync(read, state.directory, self.position)
            if pieces:
                break
            self.position = state.end  # the rest was deleted meanwhile
        self.position = pieces[-1].end
        return Chunk(pieces, pieces[0].begin - before)

    def _recent(self) -> list[Piece]:
        recent = self._log.recent
        if not recent or self.position < recent[0].begin:
            return []
        found = list[Piece]()
        for piece in reversed(recent):
            if piece.end <= self.position:
                break
            found.append(piece)
        found.reverse()
        return [found[0].after(self.position), *found[1:]] if found else []
