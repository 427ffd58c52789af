"""From lines to events and back: what a producer had ready becomes one batch, and each line gets its answer."""

from collections.abc import Iterable
from typing import Final

from msgspec import UNSET

from progressd.producers.lines import Answer, Line, NumberedLine, read_line
from progressd.submitting import Outcome

CHUNK: Final = 16384  # bytes read at once; some 100 lines, or 8,000 that are nonsense and take 60 ms to say so
ANSWERS_MOST: Final = 16 * 1024 * 1024  # bytes of answers that may wait for a producer; it is read no further meanwhile
PATIENCE: Final = 60.0  # seconds that a producer which has said all may take to read its answers


class Intake:
    """Lines that were read together. `job_id`: the job of those that do not name one; naming another is refused.

    `asks`: whether a line asks for an answer, or is bad and gets one. `bad`: how many are.
    """

    def __init__(self, lines: Iterable[NumberedLine], job_id: str | None = None) -> None:
        self._read = [read_line(number, line, job_id) for number, line in lines]
        self.events = [line.event for line in self._read if isinstance(line, Line)]
        self.bad = len(self._read) - len(self.events)
        self.asks = self.bad > 0 or any(line.ref is not UNSET for line in self._read)

    def __len__(self) -> int:
        return len(self._read)

    def answers(self, outcomes: Iterable[Outcome], store_id: str) -> list[Answer]:
        """An answer for each line, in order, from the outcomes of the events."""
        decided = iter(outcomes)
        return [line.answer(next(decided), store_id) if isinstance(line, Line) else line for line in self._read]
