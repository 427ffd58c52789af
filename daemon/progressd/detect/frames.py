"""Split the output of a program into frames. A frame is a line, or one state of a line that the program redraws.

A program redraws a line with a carriage return, with backspaces, or by moving the cursor. The return may come before
or after the text. OSC 9;4, the progress sequence of terminals, is a frame of its own.
"""

import re
from typing import Final, NamedTuple

MAX_FRAME: Final = 1024  # bytes of a frame that are searched
MAX_JSON: Final = 16384  # bytes of a frame that begins with {
MAX_FED: Final = 16384  # bytes of a chunk that are split; more output at once makes its earlier frames outdated
MAX_FRAMES: Final = 256  # frames of a chunk, for the same reason
LONGEST: Final = 32  # bytes of the longest separator

_DIGITS: Final = tuple(b"%d" % digit for digit in range(10))

_OSC: Final = rb"\x1b\]9;4;[0-9;]{0,16}(?:\x07|\x1b\\)"
_SEPARATOR: Final = re.compile(rb"(\r?\n|\r|\x08+|\x1b\[[0-9;]{0,16}[ABEFGHdf]|" + _OSC + rb")")
_ESCAPES: Final = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()#%][0-9A-Za-z]?|[0-Z\\^-~])?"
)
_CONTROLS: Final = bytes(code for code in range(32) if code not in b"\t\n\r\x1b")


class Frame(NamedTuple):
    """One state of a line. `redraw`: the program overwrites the line. `osc`: the frame is an OSC 9;4 sequence."""

    text: bytes
    redraw: bool
    osc: bool = False

    @property
    def plain(self) -> bytes:
        """Return the text without escape sequences and control characters."""
        text = self.text
        if len(text) == MAX_FRAME + 1:  # the frame is longer, so a number at the end may be cut
            text = text[:MAX_FRAME].rstrip(b"0123456789.,")
        if b"\x1b" in text:
            text = _ESCAPES.sub(b"", text)
        return text.translate(None, _CONTROLS)


class FrameSplitter:
    """Split the chunks of one stream into frames. Memory is bounded, and time is linear in the bytes."""

    def __init__(self) -> None:
        self._head = bytearray()  # the unfinished frame, up to the limit
        self._rest = b""  # the end of the chunk that may begin a separator
        self._redraw = False  # the unfinished frame began with a redraw

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that end in this chunk and are not empty.

        Text without digits is skipped. If a chunk has more than MAX_FED bytes, only its end is split. If there are more
        than MAX_FRAMES frames, only the last ones are returned.
        """
        if len(chunk) > MAX_FRAME and not self._has_digits(chunk):
            chunk = chunk[max(chunk.rfind(b"\n") - 1, 0) :]
        if len(chunk) > MAX_FED:
            chunk = self._skip(chunk)
        data = self._rest + chunk
        half = b"\r" if data.endswith(b"\r") else b""  # it may be the first half of CR LF
        pieces = _SEPARATOR.split(data.removesuffix(half))
        frames: list[Frame] = []
        for text, separator in zip(pieces[0:-1:2], pieces[1::2], strict=True):
            osc = separator.startswith(b"\x1b]")
            redraw = not osc and not separator.endswith(b"\n")
            if self._head:
                self._keep(text)
                text = bytes(self._head)
                self._head.clear()
            if text:
                frames.append(Frame(_limited(text), self._redraw or redraw))
            if osc:
                frames.append(Frame(separator, redraw=True, osc=True))
            else:
                self._redraw = redraw
        self._begin(pieces[-1] + half)
        return frames[-MAX_FRAMES:]

    def forget(self) -> None:
        """Drop the unfinished frame, because the next chunk does not continue it."""
        self._head.clear()
        self._rest = b""
        self._redraw = False

    def unfinished(self) -> Frame | None:
        """Return the unfinished frame, if it is not empty. It stays unfinished."""
        text = bytes(self._head) + self._rest
        redraw = self._redraw or text.endswith(b"\r")
        text = text.rstrip(b"\r")
        return Frame(_limited(text), redraw) if text else None

    def _has_digits(self, chunk: bytes) -> bool:
        """Return whether a frame in this chunk has a digit, as all progress has."""
        return any(digit in part for part in (self._head, self._rest, chunk) for digit in _DIGITS)

    def _skip(self, chunk: bytes) -> bytes:
        """Return the end of a large chunk, from the beginning of a frame."""
        after = len(chunk) - MAX_FED
        ends = [end for mark in (b"\n", b"\r") if (end := chunk.find(mark, after)) >= 0]
        begin = min(ends) if ends else max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
        if begin < 0:  # one giant frame
            self._begin(self._rest + chunk[: 2 * MAX_FED])
            self._rest = b""
            return chunk[-LONGEST:]
        self._head.clear()
        self._rest = b""
        return chunk[begin:] if ends else chunk[begin : begin + MAX_FED] + chunk[-LONGEST:]

    def _begin(self, text: bytes) -> None:
        """Begin or continue the unfinished frame."""
        end = len(text)
        if text.endswith(b"\r"):
            end -= 1
        if (escape := text.find(b"\x1b", max(end - LONGEST, 0))) >= 0:
            end = escape
        self._keep(text[:end])
        self._rest = text[end:]

    def _keep(self, text: bytes) -> None:
        limit = MAX_JSON if (self._head or text).startswith(b"{") else MAX_FRAME
        self._head += text[: max(limit + 1 - len(self._head), 0)]


def _limited(text: bytes) -> bytes:
    return text if len(text) <= MAX_FRAME else text[: MAX_JSON if text.startswith(b"{") else MAX_FRAME + 1]
