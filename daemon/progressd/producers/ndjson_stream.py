"""A stream of lines from afar, taken some at a time: what was fed becomes events, and each line gets its answer.

The Unix socket does without: there all producers are read by one task, and who is let in there is trusted.
"""

from collections import deque
from typing import Final

from progressd.core.errors import InvalidInput
from progressd.engine.submitting import Submitting
from progressd.producers.ndjson import CHUNK, TURN_LINES, Answer, Intake, LineSplitter, NumberedLine

BAD_MOST: Final = 1000  # lines that are no events, after which it is not worth reading on


class LineStream:
    """Of one producer. `job_id`: the job of lines that name none. True while lines wait."""

    def __init__(self, splitter: LineSplitter, ingest: Submitting, job_id: str | None = None) -> None:
        self._splitter = splitter
        self._ingest = ingest
        self._job_id = job_id
        self._waiting = deque[NumberedLine]()
        self._bad = 0  # lines
        self._size = 0  # bytes of the lines that wait

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Whether enough lines wait for one turn."""
        return self._size > CHUNK or len(self._waiting) > TURN_LINES

    @property
    def next_number(self) -> int:
        """The number of the first line that has not been taken."""
        return self._waiting[0][0] if self._waiting else self._splitter.number + 1

    def feed(self, chunk: bytes) -> None:
        """More bytes."""
        self._add(self._splitter.feed(chunk))

    def end(self) -> None:
        """No more bytes of the line that has begun, if one has."""
        self._add(self._splitter.end())

    def drop(self) -> None:
        """Forget the lines that wait."""
        self._waiting.clear()
        self._size = 0

    async def take(self) -> list[Answer]:
        """Some of the lines that wait, decided. Raises Unavailable, and InvalidInput where too many are no events."""
        if self._waiting and self._bad > BAD_MOST:
            raise InvalidInput(f"more than {BAD_MOST} lines were no events: no more of them are taken")
        lines = [self._waiting.popleft() for _ in range(min(TURN_LINES, len(self._waiting)))]
        self._size -= sum([_size(line) for _, line in lines])
        intake = Intake(lines, self._job_id)
        self._bad += intake.bad
        return intake.answers(await self._ingest.submit(*intake.events), self._ingest.store_id)

    def _add(self, lines: list[NumberedLine]) -> None:
        self._waiting.extend(lines)
        self._size += sum([_size(line) for _, line in lines])


def _size(line: object) -> int:
    return len(line) if isinstance(line, bytes) else 0
