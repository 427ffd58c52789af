"""The keys that a user types, decoded from the bytes of a terminal."""

import codecs
import re
from typing import Final

ENTER: Final = "enter"
ESCAPE: Final = "escape"
BACKSPACE: Final = "backspace"

_NAMES: Final = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "H": "home",
    "F": "end",
    "Z": "backtab",
    "1~": "home",
    "4~": "end",
    "5~": "pageup",
    "6~": "pagedown",
    "7~": "home",
    "8~": "end",
    "3~": "delete",
}
_CONTROL: Final = {
    "\r": ENTER,
    "\n": ENTER,
    "\t": "tab",
    "\x7f": BACKSPACE,
    "\x08": BACKSPACE,
    "\x0c": "redraw",  # Ctrl-L
    "\x15": "clear",  # Ctrl-U
    "\x17": "clear",  # Ctrl-W
    "\x02": "pageup",  # Ctrl-B, Ctrl-F, Ctrl-N and Ctrl-P as in less
    "\x06": "pagedown",
    "\x0e": "down",
    "\x10": "up",
}
_SEQUENCE = re.compile(r"\x1b(?:\[|O)([0-?]*[ -/]*[@-~])|\x1b([^\[O\x1b])|\x1b(?=\x1b)")
_BEGINNING = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?")
MAX_SEQUENCE: Final = 32  # characters; a longer one is garbage


class Keys:
    """Decode keys: a character, or a name such as `pageup`. Unknown sequences are no key."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._text = ""

    @property
    def incomplete(self) -> bool:
        """Return whether the beginning of a sequence has arrived: the rest, or the Escape key alone."""
        return bool(self._text)

    def feed(self, data: bytes) -> list[str]:
        """Return the keys that are complete."""
        self._text += self._decoder.decode(data)
        return self._decoded()

    def flush(self) -> list[str]:
        """Return the Escape key if nothing followed it."""
        text, self._text = self._text, ""
        return [ESCAPE] if text == "\x1b" else []

    def _decoded(self) -> list[str]:
        keys, text = list[str](), self._text
        while text:
            if text[0] != "\x1b":
                if key := _CONTROL.get(text[0]) or (text[0] if text[0].isprintable() else ""):
                    keys.append(key)
                text = text[1:]
            elif (sequence := _SEQUENCE.match(text)) is not None:
                if sequence[1] is None:
                    keys.append(ESCAPE)  # Escape, then another key
                    text = text[1:]
                    continue
                if key := _NAMES.get(sequence[1], ""):
                    keys.append(key)
                text = text[sequence.end() :]
            elif _BEGINNING.fullmatch(text) and len(text) <= MAX_SEQUENCE:
                break
            else:
                text = text[1:]
        self._text = text
        return keys
