"""What a pipeline writes, read into events of its job: NDJSON, or text where a configured pattern finds the numbers."""

from collections.abc import Sequence

import structlog

from progressd.core.errors import InvalidInput
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    PreviewEvent,
    ProgressEvent,
    ReportedResult,
)
from progressd.core.progress_pattern import ProgressPattern
from progressd.ingest import Ingest
from progressd.producers.lines import NumberedLine, read_event

log = structlog.get_logger(__name__)


class Output:
    """Hands in the progress; keeps what the pipeline says of its end until it has ended."""

    def __init__(self, job_id: str, ingest: Ingest, progress_pattern: str | None) -> None:
        self._job_id = job_id
        self._ingest = ingest
        self._pattern = ProgressPattern(progress_pattern) if progress_pattern else None
        self.result = ReportedResult()
        self.complaint: str | None = None

    async def on_stdout(self, lines: Sequence[NumberedLine]) -> None:
        """Take lines of standard output."""
        await self._take([event for _, line in lines if (event := self._event(line)) is not None])

    async def on_stderr(self, lines: Sequence[NumberedLine]) -> None:
        """Take lines of standard error, where only the pattern looks."""
        if self._pattern is not None:
            await self._take([event for _, line in lines if (event := self._found(line)) is not None])

    async def _take(self, events: Sequence[ProgressEvent | PreviewEvent]) -> None:
        await self._ingest.submit(*events)

    def _event(self, line: bytes | InvalidInput) -> ProgressEvent | PreviewEvent | None:
        if isinstance(line, InvalidInput) or not line.lstrip().startswith(b"{"):
            return self._found(line)
        try:
            event = read_event(line, self._job_id)
        except InvalidInput as error:
            log.warning("pipeline wrote a bad line", job_id=self._job_id, error=str(error))
            return None
        match event:
            case CompletedEvent():
                self.result = event.data
            case ErrorEvent():
                self.complaint = event.data.message
            case ProgressEvent() | PreviewEvent():
                return event
        return None

    def _found(self, line: bytes | InvalidInput) -> ProgressEvent | None:
        if self._pattern is None or isinstance(line, InvalidInput):
            return None
        try:
            found = self._pattern.find(line)
        except InvalidInput as error:
            log.warning("pipeline wrote no progress", job_id=self._job_id, error=str(error))
            return None
        return ProgressEvent(self._job_id, found) if found is not None else None
