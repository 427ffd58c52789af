"""The output of a pipeline: events, progress that is found in other text, and the log of the job.

Events on standard output are not kept in the log, except for the text of `log` events. Neither the program nor its
progress and its end wait for the log.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Final, Literal, TypeAlias

import msgspec
import structlog
import trio
from msgspec import Struct

from progressd.core.errors import InvalidInput, NotFound
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    LogEvent,
    LogStream,
    PreviewEvent,
    ProgressEvent,
    ReportedProgress,
    ReportedResult,
)
from progressd.core.json import UNDECODABLE
from progressd.detect.detector import STDERR, STDOUT, Detector
from progressd.engine.ingest import Ingest
from progressd.files.job_logs import JobLogs, note, record_of
from progressd.files.log_file import Record, rfc3339
from progressd.producers.ndjson import LineTooLong, NumberedLine, Turn, read_event
from progressd.runner.process import MAX_LINE
from progressd.system.condition import Condition
from progressd.system.output_buffer import OutputBuffer, OutputChunk

RETRY: Final = 0.1  # seconds until more can be taken after a gap
STREAMS: Final = {STDOUT: LogStream.STDOUT, STDERR: LogStream.STDERR}

Reported: TypeAlias = ProgressEvent | PreviewEvent

log = structlog.get_logger(__name__)


class OutputParser:
    """Submit the progress of a job, and keep its result or error until the program has exited.

    As soon as the program reports progress itself, its other output is no longer searched, unless `always` is true.
    """

    def __init__(self, job_id: str, ingest: Ingest, detector: Detector, *, always: bool = False) -> None:
        self._job_id = job_id
        self._ingest = ingest
        self._detector = detector
        self._always = always
        self._reports = False  # the program reports progress itself
        self.result = ReportedResult()
        self.error: str | None = None
        self._warned = False

    async def on_stdout(self, lines: Sequence[NumberedLine]) -> None:
        """Handle lines of standard output that are events. Let other tasks run in between."""
        await self._submit(self._event(line) for _, line in lines)

    async def on_chunk(self, stream: int, chunk: bytes) -> None:
        """Search output for progress. An empty chunk means that the stream is quiet."""
        if self._reports and not self._always:
            return
        if chunk:
            found = (progress for _, progress in self._detector.frames(stream, chunk))
        else:
            found = (progress for progress in self._detector.quiet(stream))
        await self._submit(ProgressEvent(self._job_id, one) if one is not None else None for one in found)

    @property
    def has_found(self) -> bool:
        """Return whether the program or its output has shown progress."""
        return self._reports or bool(self._detector.source)

    async def on_position(self, position: int, size: int) -> None:
        """Handle the position in the input as an estimate, unless there is progress."""
        if not self.has_found:
            progress = ReportedProgress(position, size, "Reading the input (estimate)")
            await self._ingest.submit(ProgressEvent(self._job_id, progress))

    async def on_notification(self, progress: ReportedProgress) -> None:
        """Handle the progress of a notification socket."""
        self._reports = True
        await self._ingest.submit(ProgressEvent(self._job_id, progress))

    async def _submit(self, reported: Iterable[Reported | None]) -> None:
        """Submit the events among these. Let other tasks run in between."""
        turn, events = Turn(), list[Reported]()
        for event in reported:
            if event is not None:
                events.append(event)
            turn.count(1)
            if turn.over:
                await self._ingest.submit(*events)
                turn, events = Turn(), []
        await self._ingest.submit(*events)

    def _event(self, line: bytes | LineTooLong) -> Reported | None:
        if isinstance(line, LineTooLong) or not line.lstrip().startswith(b"{"):
            return None
        try:
            event = read_event(line, self._job_id)
        except InvalidInput as error:
            self._warn(error)
            return None
        match event:
            case CompletedEvent():
                self.result = event.data
            case ErrorEvent():
                self.error = event.data.message
            case ProgressEvent():
                self._reports = True
                return event
            case PreviewEvent():
                return event
        return None

    def _warn(self, error: InvalidInput) -> None:
        """Log only the first invalid event of a job, because a program may write millions."""
        if not self._warned:
            self._warned = True
            log.warning(
                "pipeline output is not an event; only the first case is logged", job_id=self._job_id, error=str(error)
            )


class _Event(Struct):
    type: Literal["progress", "status_change", "completed", "error", "page_preview", "job_created", "log"]


_is_event = msgspec.json.Decoder(_Event).decode


class PipelineOutputBuffer(OutputBuffer):
    """A buffer that handles the events on standard output."""

    def __init__(self, on_put: Callable[[], object], job_id: str) -> None:
        super().__init__(on_put, max_pending=MAX_LINE)
        self._job_id = job_id

    def _add(self, entries: list[OutputChunk], at: float, stream: LogStream, text: bytes) -> None:
        parts = without_events(text, self._job_id) if stream is LogStream.STDOUT else [(stream, text)]
        for of_part, part in parts:
            super()._add(entries, at, of_part, part)


class PipelineLog:
    """The output of one attempt, on its way to the log."""

    def __init__(self, logs: JobLogs, job_id: str, attempt: int) -> None:
        self._logs = logs
        self._opened = logs.open(job_id)
        self._job_id = job_id
        self._attempt = attempt
        self._changed = Condition()
        self._buffer = PipelineOutputBuffer(self._changed.notify, job_id)

    def put(self, stream: int, chunk: bytes) -> None:
        """Add output; an empty chunk means a silent stream. An unfinished line of stdout may become an event."""
        if chunk or stream == STDERR:
            self._buffer.put(STREAMS[stream], chunk)

    def close(self) -> None:
        """Note that the program has exited."""
        self._buffer.close()

    async def run(self) -> None:
        """Write the output until the program has exited, or the job is deleted."""
        try:
            if self._attempt > 1:
                await self._logs.append(self._job_id, [note(f"attempt {self._attempt}")], self._opened)
            while True:
                await self._changed.wait_for(lambda: self._buffer.ended or not self._buffer.empty)
                while entries := self._buffer.take():
                    await self._logs.append(self._job_id, [_record(entry) for entry in entries], self._opened)
                if self._buffer.ended:
                    return
                if not self._buffer.empty:
                    await trio.sleep(RETRY)
        except NotFound:  # the job was deleted
            return


def _record(entry: OutputChunk) -> Record:
    text = entry.text.decode("utf-8", "replace").encode()  # watchers receive it as JSON
    return Record(rfc3339(datetime.fromtimestamp(entry.time, UTC)), entry.stream, text)


def without_events(text: bytes, job_id: str) -> list[tuple[LogStream, bytes]]:
    """Return the text of standard output that belongs in the log. An invalid event is text."""
    if b"{" not in text:
        return [(LogStream.STDOUT, text)]
    parts = [_part(line, job_id) for line in text.splitlines(keepends=True)]
    return [(stream, b"".join([part for _, part in group])) for stream, group in groupby(parts, itemgetter(0))]


def _part(line: bytes, job_id: str) -> tuple[LogStream, bytes]:
    if line.lstrip().startswith(b"{"):
        with suppress(InvalidInput, *UNDECODABLE):
            _is_event(line)  # most JSON is rejected here, in a tenth of the time
            event = read_event(line, job_id)
            if not isinstance(event, LogEvent):
                return LogStream.STDOUT, b""
            record = record_of(event.data)
            return record.stream, record.text
    return LogStream.STDOUT, line
