"""From lines to events and back: what a producer had ready becomes one batch, and each line gets its answer."""

import time
from collections.abc import Iterable
from typing import Final

from msgspec import UNSET

from progressd.producers.lines import Answer, Line, NumberedLine, read_line
from progressd.submitting import Outcome

CHUNK: Final = 16384  # bytes read at once, some 100 lines
TURN_LINES: Final = 250  # which take 2 ms if they are not events
TURN_SECONDS: Final = 0.003
ANSWERS_MOST: Final = 16 * 1024 * 1024  # bytes of answers that may wait for a producer; it is read no further meanwhile
PATIENCE: Final = 60.0  # seconds that a producer which has said all may take to read its answers


class Turn:
    """Limit what is read of producers before the rest of the daemon gets a turn: in lines, and in time."""

    def __init__(self) -> None:
        self.left = TURN_LINES
        self._end = time.perf_counter() + TURN_SECONDS

    def took(self, lines: int) -> None:
        """Count lines that were read."""
        self.left -= lines

    @property
    def over(self) -> bool:
        """Return whether it is the turn of others."""
        return self.left <= 0 or time.perf_counter() >= self._end


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
