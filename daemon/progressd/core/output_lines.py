"""Split the output of a program into the lines of a log. Only the last state of a progress bar is kept."""

from typing import Final

MAX_PENDING: Final = 65536  # bytes of a line without an end, after which it is passed on in parts


class OutputLines:
    """The lines of one stream, byte for byte, except that a carriage return discards what it overwrites.

    Text that does not end with a line feed is the beginning of a line: its rest follows.
    """

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._pending = b""  # the incomplete line
        self._begun = False  # a part of the incomplete line was passed on

    def feed(self, chunk: bytes) -> bytes:
        """Return the lines that end in this chunk, and the beginning of a long line."""
        ended, feed, rest = chunk.rpartition(b"\n")
        lines = b""
        if feed:
            text = self._pending + ended + feed
            self._pending = b""
            lines = self._collapsed(text)
            self._begun = False
        self._pending += rest
        if b"\r" in rest:
            self._pending = _last_frame(self._pending)
        if len(self._pending) > self._max_pending:
            lines += self._take()
        return lines

    def quiet(self) -> bytes:
        """Return the incomplete line of a silent program, such as a question. A line that is redrawn has to wait."""
        return b"" if b"\r" in self._pending else self._take()

    def end(self) -> bytes:
        """Return the incomplete line, at the end of the stream."""
        text, self._pending = self._pending, b""
        text = self._line(text)
        self._begun = False
        return text

    def _take(self) -> bytes:
        """Return the incomplete line, up to the last whole character."""
        end = whole_characters(self._pending)
        text, self._pending = self._line(self._pending[:end]), self._pending[end:]
        self._begun = self._begun or bool(text)
        return text

    def _collapsed(self, text: bytes) -> bytes:
        if b"\r" not in text:
            return text
        first, *others = text[:-1].split(b"\n")
        return b"".join([self._line(first), b"\n", *[_shown(line) + b"\n" for line in others]])

    def _line(self, line: bytes) -> bytes:
        """Return the last state of a line. If an earlier state was passed on, the carriage return stays."""
        shown = _shown(line)
        return b"\r" + shown if self._begun and b"\r" in line.rstrip(b"\r") else shown


def _shown(line: bytes) -> bytes:
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def _last_frame(text: bytes) -> bytes:
    """Return the last state of the incomplete line. It begins with a carriage return if there were earlier states."""
    stripped = text.rstrip(b"\r")
    shown = stripped.rpartition(b"\r")[2]
    return b"\r" * (shown != stripped) + shown + b"\r" * (stripped != text)


def whole_characters(text: bytes) -> int:
    """Return the length of UTF-8 text without a character that is cut off at its end."""
    for position in range(len(text) - 1, max(-1, len(text) - 4), -1):
        byte = text[position]
        if byte & 0xC0 != 0x80:
            size = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return position if position + size > len(text) else len(text)
    return len(text)
