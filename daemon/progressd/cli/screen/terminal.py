"""A terminal that is used as a whole, and is restored afterwards.

Sequences are those of xterm (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html).
"""

import contextlib
import os
import select
import signal
import termios
from collections.abc import Mapping, Sequence
from typing import Final, Self

import trio

from progressd.cli.screen.keys import Keys

# The alternate screen, where most terminals send the mouse wheel as arrow keys; no cursor; no wrap.
ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"  # terminals that know them show what is between at once
CLEAR: Final = "\x1b[0m\x1b[2J"
ESCAPE_DELAY: Final = 0.05  # seconds after which Escape is the key, and not the beginning of a sequence
DEFAULT_SIZE: Final = (80, 24)
TAB_STATES: Final = {"none": 0, "normal": 1, "error": 2, "unknown": 3, "paused": 4}  # of OSC 9;4
VTE_WITH_PROGRESS: Final = 8000  # version 0.80
PROGRAMS_WITH_PROGRESS: Final = frozenset({"WezTerm", "ghostty"})


def shows_progress(environ: Mapping[str, str]) -> bool:
    """Return whether the terminal shows progress in its tab (OSC 9;4). Others print it, or show a notification."""
    if environ.get("TERM", "").startswith(("tmux", "screen", "linux", "dumb")):
        return False
    vte = environ.get("VTE_VERSION", "")
    return (
        "WT_SESSION" in environ
        or environ.get("ConEmuANSI") == "ON"
        or environ.get("TERM_PROGRAM") in PROGRAMS_WITH_PROGRESS
        or "P" in environ.get("TERM_FEATURES", "")  # iTerm2 lists what it can
        or (vte.isdecimal() and int(vte) >= VTE_WITH_PROGRESS)
    )


class FullScreen:
    """The terminal of this process within a `with` block: lines instead of a stream, and keys as they are typed."""

    def __init__(self, keyboard: int, output: int, environ: Mapping[str, str]) -> None:
        self._keyboard = keyboard
        self._output = output
        self._before = termios.tcgetattr(keyboard)
        self._shown = list[str]()
        self._entered = False
        self._tab = (TAB_STATES["none"], 0)  # the last progress in the terminal's tab
        self.has_tab = shows_progress(environ)

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Take the terminal. In the background, this stops the process until it is in the foreground."""
        mode = termios.tcgetattr(self._keyboard)
        mode[0] &= ~termios.IXON  # otherwise Ctrl-S would stop the daemon's messages too
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = b"\x01", b"\x00"
        mode[6][termios.VQUIT] = b"\x00"  # a core dump would leave the terminal as it is
        termios.tcsetattr(self._keyboard, termios.TCSADRAIN, mode)
        self._entered = True
        self._shown = []
        self._write(ENTER + CLEAR)

    def leave(self) -> None:
        """Give the terminal back as it was."""
        if self._entered:
            self._entered = False
            with contextlib.suppress(OSError, termios.error):  # the terminal may be closed
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)
                self.progress("none")
                self._write(END + LEAVE)

    def size(self) -> tuple[int, int]:
        """Return columns and lines."""
        try:
            columns, lines = os.get_terminal_size(self._output)
        except OSError:
            return DEFAULT_SIZE
        return (columns, lines) if columns and lines else DEFAULT_SIZE

    def clear(self) -> None:
        """Draw everything again with the next `draw`."""
        self._shown = []

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines from the top. Write only those that changed."""
        text = [
            f"\x1b[{number};1H\x1b[2K{line}"
            for number, line in enumerate(lines, 1)
            if number > len(self._shown) or self._shown[number - 1] != line
        ]
        if not self._shown or len(lines) < len(self._shown):
            text = [CLEAR, *(f"\x1b[{number};1H{line}" for number, line in enumerate(lines, 1))]
        self._shown = list(lines)
        if text:
            self._write(BEGIN + "".join(text) + END)

    def progress(self, state: str, percent: int = 0) -> None:
        """Show progress in the terminal's tab, if it can."""
        shown = (TAB_STATES[state], percent)
        if self.has_tab and shown != self._tab:
            self._tab = shown
            self._write(f"\x1b]9;4;{shown[0]};{percent}\x1b\\")

    async def keys(self, decoder: Keys) -> list[str]:
        """Wait for keys, and return them; none if the terminal is closed."""
        while True:
            await trio.lowlevel.wait_readable(self._keyboard)
            try:
                data = os.read(self._keyboard, 4096)
            except OSError:
                return []
            keys = decoder.feed(data)
            if decoder.incomplete:
                with trio.move_on_after(ESCAPE_DELAY) as waiting:
                    await trio.lowlevel.wait_readable(self._keyboard)
                if waiting.cancelled_caught:
                    keys += decoder.flush()
            if keys or not data:
                return keys

    def suspend(self) -> None:
        """Stop this process as Ctrl-Z does, with the terminal given back, and take it again afterwards."""
        self.leave()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # continues here after `fg`
        signal.signal(signal.SIGTSTP, ours)
        self.enter()

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        while data:
            try:
                data = data[os.write(self._output, data) :]
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self._output], [])
