"""What a terminal shows: as much of an emulator as the tests of full-screen programs need.

It knows the sequences that `progressd watch` uses. Any other sequence fails the test.
"""

import codecs
import os
import re
import select
from collections.abc import Callable

from rich.cells import cell_len

from support.terminal import Terminal
from support.waiting import PATIENCE

SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b\](.*?)\x1b\\", re.DOTALL)
BEGINNING = re.compile(r"\x1b(?:\[[\d;?]*|\][^\x1b]*\x1b?)?", re.DOTALL)
MODES = {"1049", "25", "7", "2026"}  # alternate screen, cursor, wrap, drawing at once


class Screen:
    """The cells of a terminal. Read it with `wait`.

    `modes`: those that are on, of MODES. `titles`: the strings of operating system commands. `frames`: how often the
    program has drawn.
    """

    def __init__(self, terminal: Terminal, rows: int = 40, columns: int = 120) -> None:
        self.terminal = terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._resize(rows, columns)
        self._style = frozenset[str]()
        self.modes = {"25", "7"}
        self.titles = list[str]()
        self.frames = 0

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the window."""
        self._resize(rows, columns)
        self.terminal.resize(rows, columns)

    @property
    def lines(self) -> list[str]:
        """Return the text of each line."""
        return ["".join(char for char, _ in row).rstrip() for row in self._cells]

    @property
    def text(self) -> str:
        """Return the text."""
        return "\n".join(self.lines)

    def line(self, part: str) -> str:
        """Return the first line that contains a text; "" if there is none."""
        return next((line for line in self.lines if part in line), "")

    def styles(self, part: str) -> frozenset[str]:
        """Return the parameters of SGR that all characters of a text have. The text must be shown."""
        for row in self._cells:
            start = "".join(char or "\0" for char, _ in row).find(part)
            if start >= 0:
                return frozenset.intersection(*(style for _, style in row[start : start + len(part)]))
        raise AssertionError(f"{part!r} is not in {self.text}")

    def type(self, keys: str) -> None:
        """Type keys."""
        self.terminal.type(keys.encode())

    def wait(self, condition: Callable[["Screen"], object]) -> None:
        """Read until the condition holds."""
        while not condition(self):
            ready = select.select([self.terminal.descriptor], [], [], PATIENCE)[0]
            assert ready, f"this does not come:\n{self.text}"
            try:
                self.read()
            except OSError:
                raise AssertionError(f"the program has ended:\n{self.text}") from None

    def wait_for(self, part: str) -> None:
        """Read until a text is shown."""
        self.wait(lambda screen: part in screen.text)

    def read(self) -> None:
        """Read what has been written."""
        data = os.read(self.terminal.descriptor, 65536)
        self.terminal.shown += data
        self._feed(data)

    def _resize(self, rows: int, columns: int) -> None:
        self._cells = [[(" ", frozenset[str]())] * columns for _ in range(rows)]
        self._row = self._column = 0

    def _feed(self, data: bytes) -> None:
        text, place = self._text + self._decoder.decode(data), 0
        while place < len(text) and not BEGINNING.fullmatch(text, place):
            if (sequence := SEQUENCE.match(text, place)) is not None:
                self._obey(sequence)
                place = sequence.end()
            else:
                self._put(text[place])
                place += 1
        self._text = text[place:]

    def _obey(self, sequence: re.Match[str]) -> None:
        private, parameters, final, title = sequence.groups()
        if title is not None:
            self.titles.append(title)
            return
        numbers = [int(number or 0) for number in parameters.split(";")]
        match private + final:
            case "?h":
                self.frames += parameters == "2026"
                self._set(parameters, on=True)
            case "?l":
                self._set(parameters, on=False)
            case "H":
                self._row, self._column = numbers[0] - 1, numbers[1] - 1
            case "G":
                self._column = numbers[0] - 1
            case "J":
                self._cells = [[(" ", frozenset[str]())] * len(row) for row in self._cells]
            case "K":
                if self._row < len(self._cells):
                    self._cells[self._row] = [(" ", frozenset[str]())] * len(self._cells[self._row])
            case "m":
                for number in parameters.split(";"):
                    self._style = self._style | {number} if number not in ("", "0") else frozenset()
            case other:
                raise AssertionError(f"unknown sequence {other!r} in {sequence[0]!r}")

    def _set(self, mode: str, *, on: bool) -> None:
        assert mode in MODES
        self.modes = self.modes | {mode} if on else self.modes - {mode}
        if mode == "1049" and not on:
            self._resize(len(self._cells), len(self._cells[0]))

    def _put(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._row += 1
        elif self._row < len(self._cells):
            row, width = self._cells[self._row], 1 if char.isascii() else cell_len(char)
            assert "7" in self.modes or self._column + width <= len(row), "wider than the terminal"
            for cell in range(self._column, min(self._column + width, len(row))):
                row[cell] = (char if cell == self._column else "", self._style)
            self._column += width
