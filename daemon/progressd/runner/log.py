"""Keep the output of a pipeline as the log of its job.

Events on standard output are not kept, except for the text of `log` events.
The program never waits for its log, and neither do its progress and its end.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Final, Literal

import msgspec
import trio
from msgspec import Struct

from progressd.core.errors import InvalidInput, NotFound
from progressd.core.events import LogEvent, LogStream
from progressd.core.json import UNDECODABLE
from progressd.detect.detector import STDERR, STDOUT
from progressd.files.job_logs import JobLogs, note, record_of
from progressd.files.log_file import Record, rfc3339
from progressd.producers.ndjson import read_event
from progressd.runner.process import MAX_LINE
from progressd.system.condition import Condition
from progressd.system.log_queue import LogEntry, LogQueue

RETRY: Final = 0.1  # seconds until more can be taken after a gap
STREAMS: Final = {STDOUT: LogStream.STDOUT, STDERR: LogStream.STDERR}


class _Event(Struct):
    type: Literal["progress", "status_change", "completed", "error", "page_preview", "job_created", "log"]


_is_event = msgspec.json.Decoder(_Event).decode


class OutputQueue(LogQueue):
    """A queue that handles the events on standard output."""

    def __init__(self, on_put: Callable[[], object], job_id: str) -> None:
        super().__init__(on_put, max_pending=MAX_LINE)
        self._job_id = job_id

    def _add(self, entries: list[LogEntry], at: float, stream: LogStream, text: bytes) -> None:
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
        self._queue = OutputQueue(self._changed.notify, job_id)

    def put(self, stream: int, chunk: bytes) -> None:
        """Add output. An empty chunk means that the stream is silent. An unfinished line of stdout may become an event.

        Other descriptors, which presets add, have only progress.
        """
        if stream in STREAMS and (chunk or stream == STDERR):
            self._queue.put(STREAMS[stream], chunk)

    def close(self) -> None:
        """Note that the program has exited."""
        self._queue.close()

    async def run(self) -> None:
        """Write the output until the program has exited, or the job is deleted."""
        try:
            if self._attempt > 1:
                await self._logs.append(self._job_id, [note(f"attempt {self._attempt}")], self._opened)
            while True:
                await self._changed.wait_for(lambda: self._queue.ended or not self._queue.empty)
                while entries := self._queue.take():
                    await self._logs.append(self._job_id, [_record(entry) for entry in entries], self._opened)
                if self._queue.ended:
                    return
                if not self._queue.empty:
                    await trio.sleep(RETRY)
        except NotFound:  # the job was deleted
            return


def _record(entry: LogEntry) -> Record:
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
