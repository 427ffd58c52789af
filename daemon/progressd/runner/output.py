"""The output of a pipeline: events, progress matched by a pattern, and the last line of standard error."""

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import structlog

from progressd.core.errors import InvalidInput
from progressd.core.events import CompletedEvent, ErrorEvent, PreviewEvent, ProgressEvent, ReportedResult
from progressd.core.last_lines import last_lines
from progressd.core.progress_pattern import ProgressPattern
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
    """Submit the progress of a job. Keep its result or error until the program has exited."""

    def __init__(self, job_id: str, ingest: Ingest, progress_pattern: str | None) -> None:
        self._job_id = job_id
        self._ingest = ingest
        self._pattern = ProgressPattern(progress_pattern) if progress_pattern else None
        self.result = ReportedResult()
        self.error: str | None = None
        self._warned = False

    async def on_stdout(self, lines: Sequence[NumberedLine]) -> None:
        """Handle lines of standard output: events, or text for the pattern."""
        await self._submit(lines, self._event)

    async def on_stderr(self, lines: Sequence[NumberedLine]) -> None:
        """Handle lines of standard error: text for the pattern."""
        if self._pattern is not None:
            await self._submit(lines, self._match)

    async def _submit(
        self, lines: Sequence[NumberedLine], read: Callable[[bytes | LineTooLong], Reported | None]
    ) -> None:
        """Submit the events in these lines. Let other tasks run in between."""
        turn, events = Turn(), list[Reported]()
        for _, line in lines:
            if (event := read(line)) is not None:
                events.append(event)
            turn.count(1)
            if turn.over:
                await self._ingest.submit(*events)
                turn, events = Turn(), []
        await self._ingest.submit(*events)

    def _event(self, line: bytes | LineTooLong) -> Reported | None:
        if isinstance(line, LineTooLong) or not line.lstrip().startswith(b"{"):
            return self._match(line)
        try:
            event = read_event(line, self._job_id)
        except InvalidInput as error:
            self._warn(error)
            return self._match(line)
        match event:
            case CompletedEvent():
                self.result = event.data
            case ErrorEvent():
                self.error = event.data.message
            case ProgressEvent() | PreviewEvent():
                return event
        return None

    def _match(self, line: bytes | LineTooLong) -> ProgressEvent | None:
        if self._pattern is None or isinstance(line, LineTooLong):
            return None
        try:
            found = self._pattern.find(line)
        except InvalidInput as error:
            self._warn(error)
            return None
        return ProgressEvent(self._job_id, found) if found is not None else None

    def _warn(self, error: InvalidInput) -> None:
        """Log only the first invalid event of a job, because a program may write millions."""
        if not self._warned:
            self._warned = True
            log.warning(
                "pipeline output is not an event; only the first is logged", job_id=self._job_id, error=str(error)
            )
