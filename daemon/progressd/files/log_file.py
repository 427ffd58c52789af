"""The log of one job on disk: a directory of segments, each named after its offset in the whole log.

A record is a header line, such as `2026-12-01T13:58:29.123Z stderr 12`, followed by that number of bytes of output,
usually whole lines. If the producer may repeat events, the header also contains its `source` and `seq`. Offsets count
the bytes of all records from the first one on, so they stay valid when segments in the middle are deleted: the first
quarter of the allowed size stays, and the newest segments. No file has an index, and nothing is synced: after a crash
the last record is cut.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from progressd.core.events import LogStream

SEGMENTS: Final = 8  # at least this many; the oldest one that is not at the beginning is deleted
MAX_SEGMENT: Final = 1 << 20  # bytes
MAX_SOURCES: Final = 1000  # producers of one log whose last number is in memory
HEAD: Final = 4  # the share of the beginning is one in four

_HEADER: Final = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (stdout|stderr|note) (\d{1,9})(?: ([0-9a-f]{1,16}) (\d{1,16}))?\n"
)


class Record(NamedTuple):
    """The output of a job at one time. `source` and `seq`: see ReportedLog."""

    time: str
    stream: LogStream
    text: bytes
    source: str = ""
    seq: int = 0

    def encoded(self) -> bytes:
        """Return the bytes of the record."""
        sequence = f" {self.source} {self.seq}" if self.source else ""
        return f"{self.time} {self.stream} {len(self.text)}{sequence}\n".encode() + self.text


class Piece(NamedTuple):
    """A record in the log, or its rest. `begin`: the offset of its header, `offset`: the offset of the text."""

    begin: int
    offset: int
    time: str
    stream: LogStream
    text: bytes
    source: str = ""
    seq: int = 0

    @property
    def end(self) -> int:
        """Return the offset of the next record."""
        return self.offset + len(self.text)

    def upto(self, position: int) -> "Piece":
        """Return the part of the record before a position."""
        return self._replace(text=self.text[: max(0, position - self.offset)]) if position < self.end else self

    def after(self, position: int) -> "Piece":
        """Return the part of the record after a position."""
        cut = max(0, position - self.offset)
        return self._replace(begin=position, offset=self.offset + cut, text=self.text[cut:]) if cut else self


class Segment(NamedTuple):
    """A file of the log."""

    offset: int
    path: str
    size: int

    @property
    def end(self) -> int:
        """Return the offset after the segment."""
        return self.offset + self.size

    def pieces(self) -> list[Piece]:
        """Return the complete records. A file that was deleted meanwhile has none."""
        try:
            with open(self.path, "rb") as file:
                return list(_parsed(file.read(self.size), self.offset))
        except FileNotFoundError:
            return []


def rfc3339(time: datetime) -> str:
    """Return a time in UTC in the format of a log."""
    return time.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def segments(directory: Path) -> list[Segment]:
    """Return the files of a log in order. Blocks."""
    found = list[Segment]()
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.isdecimal():
                with suppress(FileNotFoundError):
                    found.append(Segment(int(entry.name), entry.path, entry.stat().st_size))
    return sorted(found)


def _parsed(data: bytes, offset: int) -> Iterator[Piece]:
    position = 0
    while (header := _HEADER.match(data, position)) is not None:
        start, size = header.end(), int(header[3])
        if start + size > len(data):
            return
        source = header[4].decode() if header[4] else ""
        text = data[start : start + size]
        time, stream = header[1].decode(), LogStream(header[2].decode())
        yield Piece(offset + position, offset + start, time, stream, text, source, int(header[5] or 0))
        position = start + size


class LogFile:
    """The writer of one log. Only one may exist. Every method blocks, and raises OSError."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Open a log, and cut an incomplete record at its end."""
        self._directory = directory
        self.max_bytes = max_bytes
        self._segments = segments(directory)
        self.end = 0
        self.last = dict[str, int]()  # the last number of each source in the newest segments; the newest last
        if self._segments:
            self._recover()

    @property
    def size(self) -> int:
        """Return the bytes on disk."""
        return sum(segment.size for segment in self._segments)

    def append(self, records: Sequence[Record]) -> list[Piece]:
        """Add records, and return them with their offsets. Each is written with one call."""
        added = list[Piece]()
        for record in records:
            data = record.encoded()
            last = self._segments[-1] if self._segments else None
            if last is None or last.size >= self._segment_size:
                self._directory.mkdir(parents=True, exist_ok=True)
                last = Segment(self.end, str(self._directory / f"{self.end:016d}"), 0)
                self._segments.append(last)
            self._write(last, data)
            self._segments[-1] = last._replace(size=last.size + len(data))
            offset = self.end + len(data) - len(record.text)
            added.append(Piece(self.end, offset, record.time, record.stream, record.text, record.source, record.seq))
            self.end += len(data)
            if record.source:
                self._note(record.source, record.seq)
        self._trim()
        return added

    @property
    def _segment_size(self) -> int:
        return min(MAX_SEGMENT, self.max_bytes // SEGMENTS)

    def _write(self, segment: Segment, data: bytes) -> None:
        """Write data at the end of a segment, completely or not at all."""
        descriptor = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            try:
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], segment.size + written)
            except OSError:
                os.ftruncate(descriptor, segment.size)
                raise
        finally:
            os.close(descriptor)

    def _note(self, source: str, seq: int) -> None:
        self.last.pop(source, None)
        self.last[source] = seq
        if len(self.last) > MAX_SOURCES:
            del self.last[next(iter(self.last))]

    def _trim(self) -> None:
        size = self.size
        while size > self.max_bytes and len(self._segments) > 1:
            first = next(
                (number for number, one in enumerate(self._segments) if one.offset >= self.max_bytes // HEAD), None
            )
            if first is None or first >= len(self._segments) - 1:
                return
            with suppress(FileNotFoundError):
                os.unlink(self._segments[first].path)
            size -= self._segments.pop(first).size

    def _recover(self) -> None:
        last = self._segments[-1]
        for segment in self._segments[-2:]:
            for piece in (pieces := segment.pieces()):
                if piece.source:
                    self._note(piece.source, max(piece.seq, self.last.get(piece.source, 0)))
        self.end = pieces[-1].end if pieces else last.offset
        if self.end < last.end:
            os.truncate(last.path, self.end - last.offset)
            self._segments[-1] = last._replace(size=self.end - last.offset)


def read(directory: Path, position: int) -> list[Piece]:
    """Return the records from a position on, up to the end of a segment. Blocks.

    The first one may be later than the position, if the records between have been deleted.
    """
    for segment in segments(directory):
        if segment.end > position and (found := [piece for piece in segment.pieces() if piece.end > position]):
            return [found[0].after(position), *found[1:]]
    return []


def position_of_tail(directory: Path, lines: int, upto: int | None = None, max_bytes: int | None = None) -> int:
    """Return where the last lines begin, of the whole log or of its part up to an offset. Blocks.

    `max_bytes`: with longer lines, return the beginning of a record, after at least this many bytes.
    """
    found = segments(directory)
    if upto is None:
        upto = found[-1].end if found else 0
    if not lines:
        return upto
    before = lines  # number of line feeds before the tail, except one at its end
    at_end, size = True, 0
    for segment in reversed([one for one in found if one.offset < upto]):
        for piece in reversed(segment.pieces()):
            end = min(len(piece.text), upto - piece.offset)
            if end < 0:
                continue
            size += end
            if at_end and end:
                end -= piece.text[:end].endswith(b"\n")
                at_end = False
            while (end := piece.text.rfind(b"\n", 0, end)) >= 0:
                before -= 1
                if not before:
                    return piece.offset + end + 1
            if max_bytes is not None and size >= max_bytes:
                return piece.begin
    return 0


def position_since(directory: Path, time: str) -> int:
    """Return where the records begin that were written at a time or later. Blocks."""
    found = segments(directory)
    for segment in found:
        for piece in segment.pieces():
            if piece.time >= time:
                return piece.begin
    return found[-1].end if found else 0
