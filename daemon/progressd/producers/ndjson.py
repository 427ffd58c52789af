"""Lines of JSON: split from bytes, decoded into events, and acknowledged."""

import time
import uuid
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from progressd.core.errors import InvalidInput, ProgressdError, Unavailable
from progressd.core.events import LogEvent, ProducerEvent, RegisterEvent, checked_options_size, parts_of
from progressd.core.job import Job
from progressd.core.json import UNDECODABLE, decode, reason_of
from progressd.core.messages import Cursor
from progressd.engine.commands import Outcome
from progressd.engine.ingest import EventSink

CHUNK: Final = 16384  # bytes per read, about 100 lines
TURN_LINES: Final = 250  # lines in one pass: 2 ms if all are invalid
TURN_SECONDS: Final = 0.003
LINE_WEIGHT: Final = CHUNK // TURN_LINES + 1  # minimum bytes that a line counts as
MAX_BAD_LINES: Final = 1000  # invalid lines, after which the rest of a remote stream is ignored
MAX_ANSWERS: Final = 16 * 1024 * 1024  # bytes of unread answers, above which the daemon stops reading from a producer
SEND_TIMEOUT: Final = 60.0  # seconds for a producer to read its answers after its last line

_decode = msgspec.json.Decoder(ProducerEvent).decode
_encode = msgspec.json.Encoder().encode


class LineTooLong(InvalidInput):
    """A line exceeds the limit. The rest of it is skipped."""


NumberedLine: TypeAlias = tuple[int, bytes | LineTooLong]


class LineSplitter:
    """Split chunks of bytes into lines, numbered from 1. Blank lines are counted but omitted."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()  # the incomplete line
        self._skipping = False
        self.number = 0  # number of the last complete line

    def feed(self, chunk: bytes) -> list[NumberedLine]:
        """Return the lines that end in this chunk, without their line ends.

        The incomplete line is extended in place, so a line that arrives byte by byte is not copied each time.
        """
        *ended, rest = chunk.split(b"\n")
        lines: list[NumberedLine] = []
        for line in ended:
            self.number += 1
            if self._rest:
                line = bytes(self._rest) + line
                self._rest.clear()
            if self._skipping:
                self._skipping = False
            elif len(line) > self._max_bytes:
                lines.append((self.number, self._too_long()))
            elif line and not line.isspace():
                lines.append((self.number, line))
        if not self._skipping:
            self._rest += rest
            if len(self._rest) > self._max_bytes:
                lines.append((self.number + 1, self._too_long()))
                self._skipping = True
                self._rest.clear()
        return lines

    def end(self) -> list[NumberedLine]:
        """Return the last line if it has no line end. The next chunk starts a new line."""
        return self.feed(b"\n") if self._rest or self._skipping else []

    def _too_long(self) -> LineTooLong:
        return LineTooLong(f"the line has more than {self._max_bytes} bytes")


class _Ref(Struct):
    ref: Raw | UnsetType = UNSET


_decode_ref = msgspec.json.Decoder(_Ref).decode


class Ack(Struct, frozen=True, omit_defaults=True):
    """The answer to a line: the producer's `ref`, and the `cursor` of the event.

    A rejected line has the HTTP `status` of its error, and its number (`line`).
    """

    ref: Raw | UnsetType = UNSET
    ok: bool | UnsetType = UNSET
    cursor: str | UnsetType = UNSET
    job_id: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    line: int | UnsetType = UNSET


def rejection(ref: Raw | UnsetType, error: ProgressdError, number: int) -> Ack:
    """Return the answer to a rejected line."""
    return Ack(ref, ok=False, error=str(error), status=error.status, line=number)


class Line(NamedTuple):
    """One event of a producer. A `ref` requests an answer."""

    number: int
    event: ProducerEvent
    ref: Raw | UnsetType

    def answer(self, outcome: Job | ProgressdError, store_id: str) -> Ack:
        """Return the answer for the outcome of the event."""
        if isinstance(outcome, ProgressdError):
            return rejection(self.ref, outcome, self.number)
        job_id = outcome.id if isinstance(self.event, RegisterEvent) else UNSET
        return Ack(self.ref, ok=True, cursor=str(Cursor(store_id, outcome.offset)), job_id=job_id)


def read_line(number: int, line: bytes | LineTooLong, job_id: str | None = None) -> Line | Ack:
    """Decode a line into its event, or into the answer that rejects it."""
    if isinstance(line, LineTooLong):
        return rejection(UNSET, line, number)
    ref: Raw | UnsetType = UNSET
    try:
        ref = _ref(line)
        return Line(number, read_event(line, job_id), ref)
    except InvalidInput as error:
        return rejection(ref, error, number)


def read_event(text: bytes, job_id: str | None = None) -> ProducerEvent:
    """Decode one JSON object. A new job without an id gets one. Raises InvalidInput.

    With `job_id`, the event may omit the id, and must not name another job.
    """
    try:
        text = checked_options_size(text, "data")
        if job_id is not None:
            text = _encode({"job_id": job_id, **parts_of(text)})
        event: ProducerEvent = _decode(text)
    except UNDECODABLE as error:
        raise InvalidInput(f"not an event: {reason_of(error)}") from None
    if job_id is not None and event.job_id.lower() != job_id:
        raise InvalidInput(f"the event is about job {event.job_id[:60]!r}, not {job_id}")
    if isinstance(event, RegisterEvent) and not event.job_id:
        return replace(event, job_id=str(uuid.uuid4()))
    return event


def _ref(line: bytes) -> Raw | UnsetType:
    """Return the ref unchanged. Raises InvalidInput if the line is not UTF-8: the answer would be invalid too."""
    if b'"ref"' not in line:  # decode a line twice only if it may have a ref
        return UNSET
    decode(bytes.decode, line, "an event")  # msgspec does not validate skipped values
    try:
        return decode(_decode_ref, line, "an event").ref
    except InvalidInput:
        return UNSET


class Turn:
    """Limit the lines and the time of producers in one pass of the event loop, so that other tasks can run."""

    def __init__(self) -> None:
        self.left = TURN_LINES
        self._end = time.perf_counter() + TURN_SECONDS

    def count(self, lines: int) -> None:
        """Count lines that were read."""
        self.left -= lines

    @property
    def over(self) -> bool:
        """Return whether other tasks should run now."""
        return self.left <= 0 or time.perf_counter() >= self._end


class LineBatch:
    """Decoded lines that were read together.

    `bad` counts the invalid lines. `asks` is true if a line requests an answer or is invalid. `logs` is true if there
    are lines of logs.
    """

    def __init__(self, lines: Iterable[NumberedLine], job_id: str | None = None) -> None:
        self._read: list[Line | Ack] = []
        self.events: list[ProducerEvent] = []
        self.asks = False
        for number, text in lines:  # one loop, because most batches have one line
            line = read_line(number, text, job_id)
            self._read.append(line)
            if isinstance(line, Line):
                self.events.append(line.event)
            if line.ref is not UNSET or not isinstance(line, Line):
                self.asks = True
        self.bad = len(self._read) - len(self.events)
        self.logs = LogEvent in map(type, self.events)

    def __len__(self) -> int:
        return len(self._read)

    def answers(self, outcomes: Iterable[Outcome], store_id: str) -> list[Ack]:
        """Return the answer to each line, in order, given the outcomes of the events."""
        decided = iter(outcomes)
        return [line.answer(next(decided), store_id) if isinstance(line, Line) else line for line in self._read]


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
        await self._ingest.limiter.pass_through(max(fed, LINE_WEIGHT * min(TURN_LINES, len(self._waiting))))
        batch = self.take()
        return self.answers(batch, await self._ingest.submit(*batch.events))

    def take(self) -> LineBatch:
        """Decode the next lines. Raises InvalidInput after too many invalid lines."""
        if self._waiting and self._bad > self._max_bad_lines:
            raise InvalidInput(f"more than {self._max_bad_lines} invalid lines: the rest is ignored")
        if len(self._waiting) <= TURN_LINES:
            lines = list(self._waiting)
            self.drop()
        else:
            lines = [self._waiting.popleft() for _ in range(TURN_LINES)]
            self._size -= _bytes_of(lines)
        batch = LineBatch(lines, self._job_id)
        self._bad += batch.bad
        return batch

    async def outcomes(self, batch: LineBatch) -> list[Outcome]:
        """Submit the events of a batch, and return their outcomes."""
        try:
            return await self._ingest.submit(*batch.events)
        except Unavailable as error:
            return [error] * len(batch.events)

    def answers(self, batch: LineBatch, outcomes: Iterable[Outcome]) -> list[Ack]:
        """Return the answer to each line of a batch, given the outcomes of its events."""
        return batch.answers(outcomes, self._ingest.store_id)

    def _add(self, lines: list[NumberedLine]) -> None:
        self._waiting.extend(lines)
        self._size += _bytes_of(lines)


def _bytes_of(lines: Iterable[NumberedLine]) -> int:
    return sum([len(line) for _, line in lines if isinstance(line, bytes)])
