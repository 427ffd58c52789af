"""One producer's stream of lines on any transport: decode lines in batches, and answer each line."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from progressd.core.errors import InvalidInput
from progressd.engine.ingest import EventSink, Outcome
from progressd.producers.ndjson import CHUNK, TURN_LINES, Ack, LineBatch, LineSplitter, NumberedLine

MAX_BAD_LINES: Final = 1000  # invalid lines, after which the rest of a remote stream is ignored
LINE_WEIGHT: Final = CHUNK // TURN_LINES + 1  # minimum bytes that a line counts as


class NDJSONReader:
    """The lines of one producer, between its transport and ingest. A reader is true while lines wait.

    The transport feeds it bytes, stops while it is `full`, and sends the answers. Lines without a job id are about
    `job_id`.
    """

    def __init__(
        self,
        max_line_bytes: int,
        ingest: EventSink,
        job_id: str | None = None,
        max_bad_lines: float = MAX_BAD_LINES,
    ) -> None:
        self._splitter = LineSplitter(max_line_bytes)
        self._ingest = ingest
        self._job_id = job_id
        self._max_bad_lines = max_bad_lines
        self._waiting = deque[NumberedLine]()
        self._bad = 0  # number of invalid lines
        self._size = 0  # bytes of the waiting lines
        self._fed = 0  # bytes since lines were last taken

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Return whether enough lines wait for one batch, or enough blank lines arrived."""
        return max(self._size, self._fed) > CHUNK or len(self._waiting) > TURN_LINES

    @property
    def next_number(self) -> int:
        """Return the number of the first line not yet taken."""
        return self._waiting[0][0] if self._waiting else self._splitter.number + 1

    def feed(self, chunk: bytes) -> None:
        """Add bytes."""
        self._fed += len(chunk)
        self._add(self._splitter.feed(chunk))

    def end(self) -> None:
        """End the current line."""
        self._add(self._splitter.end())

    def drop(self) -> None:
        """Discard the waiting lines."""
        self._waiting.clear()
        self._size = 0

    async def submit(self) -> list[Ack]:
        """Submit the events in the next lines; return the answers. Raises Unavailable, and InvalidInput like `take`.

        Fairness between streams: many streams cannot delay other requests.
        """
        fed, self._fed = self._fed, 0
        await self._ingest.turns.pass_through(max(fed, LINE_WEIGHT * min(TURN_LINES, len(self._waiting))))
        batch = self.take()
        return self.answers(batch, await self._ingest.submit(*batch.events))

    def take(self) -> LineBatch:
        """Decode the next lines. Raises InvalidInput after too many invalid lines."""
        if self._waiting and self._bad > self._max_bad_lines:
            raise InvalidInput(f"more than {self._max_bad_lines} invalid lines: the rest is ignored")
        lines = [self._waiting.popleft() for _ in range(min(TURN_LINES, len(self._waiting)))]
        self._size -= _size(lines)
        batch = LineBatch(lines, self._job_id)
        self._bad += batch.bad
        return batch

    def answers(self, batch: LineBatch, outcomes: Iterable[Outcome]) -> list[Ack]:
        """Return the answer to each line of a batch, given the outcomes of its events."""
        return batch.answers(outcomes, self._ingest.store_id)

    def _add(self, lines: list[NumberedLine]) -> None:
        self._waiting.extend(lines)
        self._size += _size(lines)


def _size(lines: Iterable[NumberedLine]) -> int:
    return sum([len(line) for _, line in lines if isinstance(line, bytes)])
