"""Read the log of a job until the job has finished, as messages or as text."""

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import trio
from msgspec import Meta, Struct
from msgspec.structs import replace

from progressd.auth.authenticator import Identity
from progressd.core.errors import InvalidInput, OutOfScope
from progressd.core.events import LogStream
from progressd.core.job import Job
from progressd.core.log_text import LogText
from progressd.core.messages import JobLog, JobLogData, LogLine
from progressd.core.output_lines import whole_characters
from progressd.engine.registry import Registry
from progressd.files.job_logs import Chunk, JobLogs, LogWatcher
from progressd.files.log_file import position_of_tail, rfc3339
from progressd.net.request import parsed_query
from progressd.system.event_loop_limiter import EventLoopLimiter
from progressd.system.output_buffer import OVERHEAD

TAIL: Final = 1000  # lines that a new watcher receives first
GRACE: Final = 1.0  # seconds without a line after the end of the job, after which its log is complete
MAX_LINES: Final = 500  # in one message
MAX_TEXT: Final = 32768  # bytes of text in one message
MAX_LINE: Final = 16384  # bytes of a line in a message; a longer one is divided
MAX_PAGE_BYTES: Final = 1 << 20  # bytes of text in a page, and at most one record more
LINE_RATE: Final = 20_000  # lines a second that are sent to one watcher
LETTERS: Final = {LogStream.STDOUT: "o", LogStream.STDERR: "e", LogStream.NOTE: "n"}

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)(s|m|min|h|d)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class LogStart(Struct, frozen=True):
    """Where to begin: at an `offset` of an earlier message, at a time of the log, or with the last lines."""

    offset: Annotated[int, Meta(ge=0, le=2**60)] | None = None
    tail: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    since: str | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.offset, self.tail, self.since)) > 1:
            raise ValueError("give only one of offset, tail and since")


class LogPage(Struct, frozen=True):
    """A part of a log, from the offset `begin` to the offset `end`; the log begins at 0."""

    begin: int
    end: int
    parts: list[JobLogData]


def require_log(identity: Identity) -> None:
    """Check that a client that may see a job may also see its log. Raises OutOfScope."""
    if not identity.logs:
        raise OutOfScope("this watch token does not show logs: use a key, or a token with log=true")


def time_of(text: str) -> str:
    """Return a time of a log for a time (RFC 3339), or for a duration before now, such as 10m. Raises InvalidInput."""
    try:
        if duration := _DURATION.fullmatch(text):
            time = datetime.now(UTC) - timedelta(seconds=float(duration[1]) * _SECONDS[duration[2]])
        else:
            time = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
            time = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"{text[:60]!r} is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 10m"
        ) from None
    return rfc3339(time)


class LogReaders:
    """Open the logs of jobs for watchers."""

    def __init__(self, logs: JobLogs, registry: Registry) -> None:
        self._logs = logs
        self._registry = registry
        self.limiter = EventLoopLimiter(1)  # one message to a watcher in each pass: each takes up to a millisecond

    @asynccontextmanager
    async def open(self, job: Job, start: LogStart, default_tail: int | None = TAIL) -> AsyncGenerator[LogWatcher]:
        """Open a log. The reading ends once the job has finished and its log is complete.

        `default_tail`: the number of lines to begin with; None for all.
        """
        tail = default_tail if start.tail is None else start.tail
        since = start.since or ""
        position = 0 if start.offset is None and start.tail is None and tail is None else start.offset
        watcher = await self._logs.watch(job.id, position=None if since else position, tail=tail or 0, since=since)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._finish, job, watcher)
                yield watcher
                nursery.cancel_scope.cancel()
        finally:
            watcher.close()

    async def page(self, job: Job, lines: int, before: int | None) -> LogPage:
        """Return the last lines, of the whole log or of its part before an offset. Long lines may be fewer."""
        begin = await trio.to_thread.run_sync(
            position_of_tail, self._logs.directory(job.id), lines, before, MAX_PAGE_BYTES
        )
        watcher = await self._logs.watch(job.id, position=begin)
        watcher.finish()
        parts = list[JobLogData]()
        try:
            end = watcher.end if before is None else min(before, watcher.end)
            while watcher.position < end and (chunk := await watcher.read()) is not None:
                pieces = [piece.upto(end) for piece in chunk.pieces if piece.begin < end]
                missed = min(chunk.missed, end - (chunk.pieces[0].begin - chunk.missed))
                if not pieces:
                    parts.append(JobLogData(end, [], missed))
                    break
                for message in log_messages(job.id, Chunk(pieces, missed)):
                    await self.limiter.pass_through(1)
                    parts.append(message.data)
        finally:
            watcher.close()
        return LogPage(min(begin, end), end, parts)

    async def _finish(self, job: Job, watcher: LogWatcher) -> None:
        """End the reading once the job has finished, and nothing was written for a moment."""
        await self._registry.wait_finished(job.id)
        old = job.completed_at is not None and datetime.now(UTC) - job.completed_at > timedelta(seconds=GRACE)
        end = -1 if not old else watcher.end
        while end != watcher.end:
            end = watcher.end
            await trio.sleep(GRACE)
        watcher.finish()


def log_messages(job_id: str, chunk: Chunk) -> Iterator[JobLog]:
    """Yield the messages with the lines of a chunk. Each has the offset after its last line."""
    missed, lines, size = chunk.missed, list[LogLine](), 0
    position = chunk.pieces[-1].end
    for piece in chunk.pieces:
        position = piece.offset
        letter = LETTERS[piece.stream]
        for text in _lines(piece.text):
            position += len(text)
            whole = text.endswith(b"\n")
            shown = text[:-1] if whole else text
            lines.append(LogLine(piece.time, letter, shown.decode("utf-8", "replace"), partial=not whole))
            size += len(text)
            if len(lines) >= MAX_LINES or size >= MAX_TEXT:
                yield JobLog(job_id, JobLogData(position, lines, missed))
                missed, lines, size = 0, [], 0
    if lines or missed:
        yield JobLog(job_id, JobLogData(position, lines, missed))


def _lines(text: bytes) -> Iterator[bytes]:
    """Yield lines with their line feeds, and long lines in parts."""
    *ended, rest = text.split(b"\n")
    for line in [*[one + b"\n" for one in ended], *([rest] if rest else [])]:
        while len(line) > MAX_LINE:
            cut = whole_characters(line[:MAX_LINE])
            yield line[:cut]
            line = line[cut:]
        yield line


def log_texts(output: LogText, chunk: Chunk, max_part: int = MAX_TEXT) -> Iterator[bytes]:
    """Yield a chunk as text, in parts of at most `max_part` bytes of the log. Each takes about a millisecond."""
    text, size = [output.gap(chunk.missed)] if chunk.missed else [], 0
    for piece in chunk.pieces:
        for part in _parts(piece.text, max_part):
            if piece.stream is LogStream.NOTE:
                text.append(output.note(part.decode("utf-8", "replace").rstrip("\n")))
            else:
                text.append(output.lines(piece.time, part))
            size += len(part) + OVERHEAD
            if size >= max_part:
                yield b"".join(text)
                text, size = [], 0
    yield b"".join(text)


def _parts(text: bytes, most: int) -> Iterator[bytes]:
    """Yield text in parts, where possible of whole lines, and otherwise of whole escape sequences."""
    begin = 0
    while len(text) - begin > most:
        end = begin + most
        cut = text.rfind(b"\n", begin, end) + 1
        if not cut:
            cut = max(text.rfind(b"\x1b", begin + 1, end), 0) or end
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def parsed_start(query: dict[str, str]) -> LogStart:
    """Return where to begin. Raises InvalidInput."""
    start = parsed_query(query, LogStart)
    return start if start.since is None else replace(start, since=time_of(start.since))
