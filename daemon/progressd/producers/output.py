"""What a pipeline writes, read into events of its job: NDJSON, or text where a configured pattern finds the numbers."""

import re
from collections.abc import Sequence

import msgspec
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
from progressd.ingest import Ingest
from progressd.producers.lines import NumberedLine, read_event

log = structlog.get_logger(__name__)


class Output:
    """Hands in the progress; keeps what the pipeline says of its end until it has ended."""

    def __init__(self, job_id: str, ingest: Ingest, progress_pattern: str | None) -> None:
        self._job_id = job_id
        self._ingest = ingest
        self._pattern = re.compile(progress_pattern) if progress_pattern else None
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
        found = self._pattern.search(line.decode(errors="replace"))
        if found is None:
            return None
        named = {name: text for name, text in found.groupdict().items() if text is not None}
        numbers = {
            "current_step": named.get("current", 0),
            "total_steps": named.get("total", 0),
            "percent": named.get("percent"),
            "step_name": named.get("step", ""),
        }
        try:
            return ProgressEvent(self._job_id, msgspec.convert(numbers, ReportedProgress, strict=False))
        except msgspec.ValidationError as error:
            log.warning("the progress pattern found no numbers", job_id=self._job_id, error=str(error))
            return None
