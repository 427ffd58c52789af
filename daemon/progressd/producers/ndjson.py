"""Lines of JSON: split from bytes, decoded into events, and acknowledged."""

import time
import uuid
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from progressd.core.cursor import Cursor
from progressd.core.errors import InvalidInput, ProgressdError
from progressd.core.events import ProducerEvent, RegisterEvent, checked_options_size, parts_of
from progressd.core.job import Job
from progressd.core.json import decode
from progressd.engine.ingest import Outcome

_decode = msgspec.json.Decoder(ProducerEvent).decode
_encode = msgspec.json.Encoder().encode


class LineTooLong(InvalidInput):
    """A line has more bytes than allowed; it is skipped up to its end."""


NumberedLine: TypeAlias = tuple[int, bytes | LineTooLong]


class LineSplitter:
    """Splits chunks of bytes into lines, and numbers them from 1. Blank lines are counted and left out."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()  # of the line that has begun
        self._skipping = False
        self.number = 0  # of the last line that has ended

    def feed(self, chunk: bytes) -> list[NumberedLine]:
        """The lines that end in this chunk, without their line ends.

        What is there of a long line is not touched again: it may come byte by byte.
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
        """The last line, where no line end followed it; what is fed after this begins another."""
        return self.feed(b"\n") if self._rest or self._skipping else []

    def _too_long(self) -> LineTooLong:
        return LineTooLong(f"the line has more than {self._max_bytes} bytes")


class _Ref(Struct):
    ref: Raw | UnsetType = UNSET


_decode_ref = msgspec.json.Decoder(_Ref).decode


class Ack(Struct, frozen=True, omit_defaults=True):
    """What a producer is told about a line: `ref` is its own, `cursor` where the event stands.

    `status` and `line` are a refused line's: the HTTP status that its error has, and its number.
    """

    ref: Raw | UnsetType = UNSET
    ok: bool | UnsetType = UNSET
    cursor: str | UnsetType = UNSET
    job_id: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    line: int | UnsetType = UNSET


def refusal(ref: Raw | UnsetType, error: ProgressdError, number: int) -> Ack:
    """The answer to a line that is refused."""
    return Ack(ref, ok=False, error=str(error), status=error.status, line=number)


class Line(NamedTuple):
    """One event of a producer; `ref` asks for an answer."""

    number: int
    event: ProducerEvent
    ref: Raw | UnsetType

    def answer(self, outcome: Job | ProgressdError, store_id: str) -> Ack:
        """What came of it."""
        if isinstance(outcome, ProgressdError):
            return refusal(self.ref, outcome, self.number)
        job_id = outcome.id if isinstance(self.event, RegisterEvent) else UNSET
        return Ack(self.ref, ok=True, cursor=str(Cursor(store_id, outcome.offset)), job_id=job_id)


def read_line(number: int, line: bytes | LineTooLong, job_id: str | None = None) -> Line | Ack:
    """Read a producer's line into its event, or into the answer that says what is wrong with it."""
    if isinstance(line, LineTooLong):
        return refusal(UNSET, line, number)
    ref: Raw | UnsetType = UNSET
    try:
        ref = _ref(line)
        return Line(number, read_event(line, job_id), ref)
    except InvalidInput as error:
        return refusal(ref, error, number)


def read_event(text: bytes, job_id: str | None = None) -> ProducerEvent:
    """Read one JSON object. A new job without an id gets one.

    `job_id`: the only job it may be about, and need not name. Raises InvalidInput.
    """
    event: ProducerEvent = decode(partial(_decode_event, job_id), text, "an event")
    if job_id is not None and event.job_id.lower() != job_id:
        raise InvalidInput(f"the event is about job {event.job_id[:60]!r}, not {job_id}")
    if isinstance(event, RegisterEvent) and not event.job_id:
        return replace(event, job_id=str(uuid.uuid4()))
    return event


def _decode_event(job_id: str | None, text: bytes) -> ProducerEvent:
    text = checked_options_size(text, "data")
    if job_id is not None:
        text = _encode({"job_id": job_id, **parts_of(text)})
    event: ProducerEvent = _decode(text)
    return event


def _ref(line: bytes) -> Raw | UnsetType:
    """What goes back as it came. Raises InvalidInput where the line is no text: then no answer would be, either."""
    if b'"ref"' not in line:  # only a line that may have one is read a second time
        return UNSET
    decode(bytes.decode, line, "an event")  # msgspec does not look into what it skips
    try:
        return decode(_decode_ref, line, "an event").ref
    except InvalidInput:
        return UNSET


CHUNK: Final = 16384  # bytes read at once, some 100 lines
TURN_LINES: Final = 250  # which take 2 ms if they are not events
TURN_SECONDS: Final = 0.003
MAX_ANSWERS: Final = 16 * 1024 * 1024  # bytes of answers that may wait for a producer; it is read no further meanwhile
SEND_TIMEOUT: Final = 60.0  # seconds that a producer which has said all may take to read its answers


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


class LineBatch:
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

    def answers(self, outcomes: Iterable[Outcome], store_id: str) -> list[Ack]:
        """An answer for each line, in order, from the outcomes of the events."""
        decided = iter(outcomes)
        return [line.answer(next(decided), store_id) if isinstance(line, Line) else line for line in self._read]
