"""Remove the frames that the options of progressd add to the output of a program."""

import re
from typing import Final

from progressd.core.progress_pattern import Pattern
from progressd.detect.frames import MAX_FRAME, Frame
from progressd.detect.plan import Plan

_SEPARATOR: Final = re.compile(rb"(\r?\n|\r)")


class OutputFilter:
    """Pass on the output of one stream without the frames that the plan's adaptation hides.

    An unfinished frame is held back until it ends or the stream is quiet.
    """

    def __init__(self, plan: Plan) -> None:
        """Create a filter. Use it only if `plan.hides`."""
        assert plan.adaptation is not None
        self._hide = Pattern(plan.adaptation.hide)
        self._only_redraws = plan.adaptation.hide_redraws
        self._returns = b""  # carriage returns that may belong to a hidden frame
        self._tail = b""  # the unfinished frame
        self._passed = False  # its beginning was passed on
        self._redraw = False

    def feed(self, data: bytes) -> bytes:
        """Return the part of this chunk, and of the output held back before, that the user should see."""
        data = self._tail + data
        half = b"\r" if data.endswith(b"\r") else b""  # it may be the first half of CR LF
        *pieces, tail = _SEPARATOR.split(data.removesuffix(half))
        self._tail = tail + half
        seen = list[bytes]()
        for text, separator in zip(pieces[::2], pieces[1::2], strict=True):
            self._frame(text, separator, seen)
        if len(self._tail) > MAX_FRAME:
            seen.append(self._pass_tail())
        return b"".join(seen)

    def quiet(self) -> bytes:
        """Return the unfinished frame if it is not to be hidden, such as a prompt. Call it after 200 ms of silence."""
        return b"" if self._tail_is_hidden() or not self._tail.strip(b"\r") else self._pass_tail()

    def end(self) -> bytes:
        """Return the rest of the output at its end."""
        return b"" if self._tail_is_hidden() else self._returns + self._tail

    def _frame(self, text: bytes, separator: bytes, seen: list[bytes]) -> None:
        redraw = separator == b"\r"
        if self._passed:
            seen += (text, separator)
            self._passed = False
        elif not text and redraw and len(self._returns) < MAX_FRAME:
            self._returns += separator
        elif text and self._is_hidden(text, self._redraw or redraw):
            self._returns = b""
        else:
            seen += (self._returns, text, separator)
            self._returns = b""
        self._redraw = redraw

    def _tail_is_hidden(self) -> bool:
        text = self._tail.rstrip(b"\r")
        return bool(text) and self._is_hidden(text, self._redraw or text != self._tail)

    def _is_hidden(self, text: bytes, redraw: bool) -> bool:
        if self._passed or (self._only_redraws and not redraw):
            return False
        return self._hide.groups(Frame(text, redraw).plain) is not None

    def _pass_tail(self) -> bytes:
        """Return the unfinished frame, except for a carriage return at its end."""
        end = self._tail.endswith(b"\r")
        text = self._tail[: len(self._tail) - end]
        seen = self._returns + text
        self._returns, self._tail, self._passed = b"", self._tail[len(text) :], True
        return seen
