"""A stream of lines from afar, taken some at a time: what was fed becomes events, and each line gets its answer.

The Unix socket does without: there all producers are read by one task, and who is let in there is trusted.
"""

from collections import deque
from typing import Final

from progressd.core.errors import InvalidInput
from progressd.engine.ingest import EventSink
from progressd.producers.ndjson import CHUNK, TURN_LINES, Ack, LineBatch, LineSplitter, NumberedLine

MAX_BAD_LINES: Final = 1000  # lines that are no events, after which it is not worth reading on
LINE_WEIGHT: Final = CHUNK // TURN_LINES + 1  # bytes that a line counts as at least


class NDJSONReader:
    """Of one producer. `job_id`: the job of lines that name none. True while lines wait."""

    def __init__(self, splitter: LineSplitter, ingest: EventSink, job_id: str | None = None) -> None:
        self._splitter = splitter
        self._ingest = ingest
        self._job_id = job_id
        self._waiting = deque[NumberedLine]()
        self._bad = 0  # lines
        self._size = 0  # bytes of the lines that wait
        self._fed = 0  # bytes since lines were last taken

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Whether enough lines wait for one turn, or enough blank ones came."""
        return max(self._size, self._fed) > CHUNK or len(self._waiting) > TURN_LINES

    @property
    def next_number(self) -> int:
        """The number of the first line that has not been taken."""
        return self._waiting[0][0] if self._waiting else self._splitter.number + 1

    def feed(self, chunk: bytes) -> None:
        """More bytes."""
        self._fed += len(chunk)
        self._add(self._splitter.feed(chunk))

    def end(self) -> None:
        """No more bytes of the line that has begun, if one has."""
        self._add(self._splitter.end())

    def drop(self) -> None:
        """Forget the lines that wait."""
        self._waiting.clear()
        self._size = 0

    async def take(self) -> list[Ack]:
        """Some of the lines that wait, decided. Raises Unavailable, and InvalidInput where too many are no events.

        The streams take turns, so that no number of them delays other requests.
        """
        fed, self._fed = self._fed, 0
        await self._ingest.turns.pass_through(max(fed, LINE_WEIGHT * min(TURN_LINES, len(self._waiting))))
        if self._waiting and self._bad > MAX_BAD_LINES:
            raise InvalidInput(f"more than {MAX_BAD_LINES} lines were no events: no more of them are taken")
        lines = [self._waiting.popleft() for _ in range(min(TURN_LINES, len(self._waiting)))]
        self._size -= sum([_size(line) for _, line in lines])
        intake = LineBatch(lines, self._job_id)
        self._bad += intake.bad
        return intake.answers(await self._ingest.submit(*intake.events), self._ingest.store_id)

    def _add(self, lines: list[NumberedLine]) -> None:
        self._waiting.extend(lines)
        self._size += sum([_size(line) for _, line in lines])


def _size(line: object) -> int:
    return len(line) if isinstance(line, bytes) else 0
