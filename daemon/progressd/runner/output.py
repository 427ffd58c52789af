"""The output of a pipeline: events, progress that is found in other text, and the last line of standard error."""

import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import structlog

from progressd.core.errors import InvalidInput
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    PreviewEvent,
    ProgressEvent,
    ReportedProgress,
    ReportedResult,
)
from progressd.core.last_lines import last_lines
from progressd.detect.detector import Detector
from progressd.engine.ingest import Ingest
from progressd.producers.ndjson import LineTooLong, NumberedLine, Turn, read_event

MAX_SUMMARY: Final = 300  # characters

_DIRECTORIES: Final = re.compile(r"""(?<![\w:/.])/(?:[^\s/:'"]+/)*(?=[^\s/])""")  # does not match the file name


def summary(stderr: bytes) -> str:
    """Return the last line that contains text, shortened and without directories; "" if there is none."""
    words = _DIRECTORIES.sub("", "".join(last_lines(stderr)))
    return words if len(words) <= MAX_SUMMARY else words[: MAX_SUMMARY - 1] + "…"


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
                "pipeline output is not an event; only the first is logged", job_id=self._job_id, error=str(error)
            )
