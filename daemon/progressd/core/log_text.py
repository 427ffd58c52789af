"""The text of a log for people: lines, gaps and notes, with or without escape sequences and times."""

import re
from typing import Final

_ESCAPES: Final = re.compile(  # ECMA-48: control sequences, strings such as the title of a window, and short ones
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]+[0-~]|[0-Z\\^-~])"
)


class LogText:
    """Make text from the parts of one log. `ansi`: keep escape sequences; `times`: print the time before each line."""

    def __init__(self, *, ansi: bool, times: bool) -> None:
        self._ansi = ansi
        self._times = times
        self._within_line = False

    def lines(self, time: str, text: bytes) -> bytes:
        """Return lines, or a part of a line, that were written at a time."""
        if not self._ansi:
            text = _ESCAPES.sub(b"", text)
        if not text:
            return b""
        begun, self._within_line = self._within_line, not text.endswith(b"\n")
        if self._times:
            prefix = f"{time} ".encode()
            text = text[:-1].replace(b"\n", b"\n" + prefix) + text[-1:]
            text = text if begun else prefix + text
        return text

    def note(self, text: str) -> bytes:
        """Return a remark on a line of its own."""
        break_, self._within_line = b"\n" if self._within_line else b"", False
        return break_ + f"[progressd: {text}]\n".encode()

    def gap(self, missed: int) -> bytes:
        """Return the remark for missing bytes."""
        return self.note(f"{missed} bytes of the log are missing here")
