"""From lines to events and back: what a producer had ready becomes one batch, and each line gets its answer."""

from collections.abc import Iterable, Sequence

from msgspec import UNSET

from progressd.ingest import Outcome, Submitting
from progressd.producers.lines import Answer, Line, NumberedLine, read_line


class Intake:
    """Lines that were read together. `job_id`: the job of those that do not name one; naming another is refused.

    `asks`: whether a line asks for an answer, or is bad and gets one.
    """

    def __init__(self, lines: Iterable[NumberedLine], job_id: str | None = None) -> None:
        self._read = [read_line(number, line, job_id) for number, line in lines]
        self.events = [line.event for line in self._read if isinstance(line, Line)]
        self.asks = any(line.ref is not UNSET or not isinstance(line, Line) for line in self._read)

    def __len__(self) -> int:
        return len(self._read)

    def answers(self, outcomes: Iterable[Outcome], store_id: str) -> list[Answer]:
        """An answer for each line, in order, from the outcomes of the events."""
        decided = iter(outcomes)
        return [line.answer(next(decided), store_id) if isinstance(line, Line) else line for line in self._read]


async def take_lines(ingest: Submitting, lines: Sequence[NumberedLine], job_id: str | None = None) -> list[Answer]:
    """Hand lines in and wait until all of them are durable; their answers. Raises Unavailable."""
    intake = Intake(lines, job_id)
    return intake.answers(await ingest.submit(*intake.events), ingest.store_id)
