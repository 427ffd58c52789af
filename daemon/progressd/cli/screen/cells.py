"""Styled text for a terminal: measured, shortened and padded in cells. A Japanese character takes two cells."""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from rich.cells import cell_len, set_cell_size

ELLIPSIS: Final = "…"
RESET: Final = "\x1b[0m"
# Select Graphic Rendition (ECMA-48 §8.3.117)
CODES: Final = {
    "bold": "1",
    "dim": "2",
    "reverse": "7",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
COLORS: Final = frozenset({"red", "green", "yellow", "cyan"})

_SGR = re.compile(r"\x1b\[([0-9;:]*)m")
_ESCAPES = re.compile(  # as in core/log_text.py, but without the sequences for colours
    r"\x1b(?:\[[0-?]*[ -/]*[@-ln-~]|\[[<-?][0-?]*[ -/]*m|\[[0-?]*[ -/]+m|\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|[PX^_][^\x1b]*\x1b\\|[ -/]+[0-~]|[0-Z\\^-~])"
)
_CONTROL = re.compile(r"[\x00-\x1a\x1c-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
TAB_WIDTH: Final = 8


class Span(NamedTuple):
    """Text in a style: names from CODES, separated by spaces."""

    text: str
    style: str = ""


Line: TypeAlias = Sequence[Span]


def shorten(text: str, width: int) -> str:
    """Return the text in at most `width` cells, with an ellipsis if something is missing."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + ELLIPSIS if width > 0 else ""


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Return the text in exactly `width` cells. `right`: align it there."""
    text = shorten(text, width)
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding


def line_width(line: Line) -> int:
    """Return the cells of a line."""
    return sum(cell_len(span.text) for span in line)


def clip(line: Line, width: int) -> list[Span]:
    """Return the line in at most `width` cells."""
    clipped = list[Span]()
    for span in line:
        cells = cell_len(span.text)
        if cells > width:
            clipped.append(Span(shorten(span.text, width), span.style))
            break
        clipped.append(span)
        width -= cells
    return clipped


class Painter:
    """Turn lines into text with escape sequences. `colors`: without them, only bold, dim and reverse remain."""

    def __init__(self, *, colors: bool) -> None:
        self._colors = colors
        self._codes = dict[str, str]()  # by style

    def paint(self, line: Line, base: str = "") -> str:
        """Return a line; `base` is a style for all of it."""
        return "".join(self._painted(text, f"{base} {style}".strip()) for text, style in line if text)

    def log_line(self, text: str, width: int) -> str:
        """Return a line of a program's output in at most `width` cells, with its colours and no other sequences."""
        text = _CONTROL.sub("", _ESCAPES.sub("", text.rstrip("\r\n").rpartition("\r")[2].expandtabs(TAB_WIDTH)))
        shown, room = list[str](), width
        for number, part in enumerate(_SGR.split(text)):
            if number % 2:  # the parameters of a sequence
                shown.append(f"\x1b[{part}m" if self._colors else "")
            elif part:
                part = part.replace("\x1b", "")
                cells = cell_len(part)
                shown.append(part if cells <= room else shorten(part, room))
                room -= cells
                if room < 0:
                    break
        return "".join(shown) + RESET

    def _painted(self, text: str, style: str) -> str:
        code = self._codes.get(style)
        if code is None:
            names = dict.fromkeys(style.split())
            code = self._codes[style] = ";".join(CODES[name] for name in names if self._colors or name not in COLORS)
        return f"\x1b[{code}m{text}{RESET}" if code else text


def joined(parts: Iterable[Line], gap: str = "  ") -> list[Span]:
    """Return parts of a line with a gap between them, without empty parts."""
    line = list[Span]()
    for part in parts:
        if any(span.text for span in part):
            line += [Span(gap), *part] if line else part
    return line
