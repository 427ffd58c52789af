"""The output of a program that is not in its log yet, within bounds.

If the log is slower than the program, the buffer keeps the oldest and the newest output. It counts the bytes of the
rest and drops them. The output is not split into lines here, because a fast program would have to wait for that.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from progressd.core.events import LogStream
from progressd.core.output_lines import MAX_PENDING, OutputLines, whole_characters

OVERHEAD: Final = 100  # bytes of memory that an entry needs beside its text; the limits include it
MAX_HEAD: Final = 1 << 20  # bytes that wait; beyond them, more may be lost
MAX_TAIL: Final = 3 << 20  # bytes of the newest output that wait after them
MAX_MERGED: Final = 4096  # bytes of small chunks in one entry
MERGE_INTERVAL: Final = 0.1  # seconds within which small chunks have the time of the first one
MAX_TEXT: Final = 32768  # bytes of text in one entry
MAX_TAKEN: Final = 1 << 18  # bytes of output taken at once
GAP_INTERVAL: Final = 1.0  # seconds between two gaps, so that long pieces of a fast output are kept


class OutputChunk(NamedTuple):
    """Text for a log. `time`: seconds since 1970. Text without a line feed at its end is the beginning of a line."""

    time: float
    stream: LogStream
    text: bytes


class OutputBuffer:
    """One thread takes; `put` may be called in any, and never waits.

    `on_put` is called for output that can be taken.
    """

    def __init__(self, on_put: Callable[[], object], max_pending: int = MAX_PENDING) -> None:
        self._on_put = on_put
        self._max_pending = max_pending
        self._lock = threading.Lock()
        self._head = deque[OutputChunk]()  # with empty text, the stream is silent
        self._tail = deque[OutputChunk]()
        self._head_size = 0
        self._tail_size = 0
        self._lost = 0  # bytes between head and tail
        self._gap_at = -GAP_INTERVAL  # time of the last gap
        self._closed = False
        self._lines = dict[LogStream, OutputLines]()

    def put(self, stream: LogStream, chunk: bytes) -> None:
        """Add output. An empty chunk means that the stream is silent: its incomplete line may be a question."""
        entry = OutputChunk(time.time(), stream, chunk)
        with self._lock:
            if not self._tail and self._head_size + len(chunk) + OVERHEAD <= MAX_HEAD:
                self._head_size += _append(self._head, entry)
            else:
                self._tail_size += _append(self._tail, entry)
                while self._tail_size > MAX_TAIL:
                    dropped = len(self._tail.popleft().text)
                    self._tail_size -= dropped + OVERHEAD
                    self._lost += dropped
        self._on_put()

    def close(self) -> None:
        """Signal that no more output follows."""
        self._closed = True
        self._on_put()

    @property
    def empty(self) -> bool:
        """Return whether nothing waits."""
        return not (self._head or self._tail or self._lost)

    @property
    def ended(self) -> bool:
        """Return whether nothing more will come."""
        return self._closed and self.empty

    def take(self) -> list[OutputChunk]:
        """Return the next entries. After a gap, there may be none for a moment. The last call is after `close`."""
        with self._lock:
            lost = 0
            if not self._head and self._may_take_tail():
                self._head, self._tail = self._tail, self._head
                self._head_size, self._tail_size = self._tail_size, 0
                lost, self._lost = self._lost, 0
            taken, size = list[OutputChunk](), 0
            while self._head and size < MAX_TAKEN:
                taken.append(self._head.popleft())
                size += len(taken[-1].text) + OVERHEAD
            self._head_size -= size
        entries = list[OutputChunk]()
        if lost:
            self._end_lines(entries)
            text = f"{lost} bytes of output are missing here: they were written faster than they were kept\n"
            entries.append(OutputChunk(time.time(), LogStream.NOTE, text.encode()))
        for at, stream, chunk in taken:
            lines = self._lines.setdefault(stream, OutputLines(self._max_pending))
            self._add(entries, at, stream, lines.feed(chunk) if chunk else lines.quiet())
        if self.ended:
            self._end_lines(entries)
        return entries

    def _may_take_tail(self) -> bool:
        now = time.monotonic()
        if self._lost and not self._closed and now < self._gap_at + GAP_INTERVAL:
            return False
        if self._lost:
            self._gap_at = now
        return True

    def _end_lines(self, entries: list[OutputChunk]) -> None:
        for stream, lines in self._lines.items():
            self._add(entries, time.time(), stream, lines.end())

    def _add(self, entries: list[OutputChunk], at: float, stream: LogStream, text: bytes) -> None:
        while text:
            cut = len(text) if len(text) <= MAX_TEXT else _cut(text)
            entries.append(OutputChunk(at, stream, text[:cut]))
            text = text[cut:]


def _append(chunks: deque[OutputChunk], entry: OutputChunk) -> int:
    """Append an entry, or add its text to the last one if both are small. Return the bytes that this needs."""
    last = chunks[-1] if chunks else None
    if (
        last is not None
        and last.stream is entry.stream
        and (last.text and entry.text)
        and len(last.text) + len(entry.text) <= MAX_MERGED
        and 0 <= entry.time - last.time < MERGE_INTERVAL
    ):
        chunks[-1] = last._replace(text=last.text + entry.text)
        return len(entry.text)
    chunks.append(entry)
    return len(entry.text) + OVERHEAD


def _cut(text: bytes) -> int:
    """Return the length of the lines, or of the beginning of a long line, for one event."""
    return text.rfind(b"\n", 0, MAX_TEXT) + 1 or whole_characters(text[:MAX_TEXT])
