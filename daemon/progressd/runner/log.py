"""Keep what a pipeline writes as the log of its job.

Lines that are events are not kept. The program never waits for its log, and neither do its progress and its end.
"""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
import trio
from msgspec import Struct

from progressd.core.errors import NotFound
from progressd.core.events import LogStream
from progressd.core.json import UNDECODABLE
from progressd.detect.detector import STDERR, STDOUT
from progressd.files.job_logs import JobLogs, note
from progressd.files.log_file import Record, rfc3339
from progressd.runner.process import MAX_LINE
from progressd.system.condition import Condition
from progressd.system.log_queue import LogEntry, LogQueue

RETRY: Final = 0.1  # seconds until more can be taken after a gap
STREAMS: Final = {STDOUT: LogStream.STDOUT, STDERR: LogStream.STDERR}


class _Event(Struct):
    type: Literal["progress", "status_change", "completed", "error", "page_preview", "job_created"]


_is_event = msgspec.json.Decoder(_Event).decode


class PipelineLog:
    """The output of one attempt, on its way to the log."""

    def __init__(self, logs: JobLogs, job_id: str, attempt: int) -> None:
        self._logs = logs
        self._opened = logs.open(job_id)
        self._job_id = job_id
        self._attempt = attempt
        self._changed = Condition()
        self._queue = LogQueue(self._changed.notify, without_events, MAX_LINE)

    def put(self, stream: int, chunk: bytes) -> None:
        """Add output; an empty chunk if the stream is silent. An unfinished line of stdout may become an event.

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


def without_events(text: bytes) -> bytes:
    """Return the lines that are not events."""
    if b"{" not in text:
        return text
    return b"".join([line for line in text.splitlines(keepends=True) if not _event(line)])


def _event(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        _is_event(line)
    except UNDECODABLE:
        return False
    return True
