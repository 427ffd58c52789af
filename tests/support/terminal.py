"""A program in a terminal of its own.

with in_terminal(["bash", "-i"]) as (process, terminal):
    terminal.read(rb"% $")
    terminal.type(b"exit\n")
"""

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence

import pytest

from support.waiting import PATIENCE


class Terminal:
    """Our end of a terminal. `shown`: all that was written to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.shown = b""
        self._closed = False

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, pattern: bytes) -> bytes:
        """Read until the new output matches a pattern, and return it."""
        new = b""
        while re.search(pattern, new) is None:
            assert select.select([self.descriptor], [], [], PATIENCE)[0], f"{pattern!r} is not in {new!r}"
            new += os.read(self.descriptor, 65536)
        self.shown += new
        return new

    def read_all(self) -> bytes:
        """Read until no program has the terminal."""
        with contextlib.suppress(OSError):
            while select.select([self.descriptor], [], [], PATIENCE)[0]:
                self.shown += os.read(self.descriptor, 65536)
            pytest.fail(f"the command does not end after {self.shown!r}")
        return self.shown

    def settings(self) -> object:
        return termios.tcgetattr(self.descriptor)

    def close(self) -> None:
        """Close the window."""
        if not self._closed:
            os.close(self.descriptor)
        self._closed = True


@contextlib.contextmanager
def in_terminal(command: Sequence[str], **streams: int) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """Run a command in the foreground of a terminal. `streams`: those that are not the terminal."""
    ours, theirs = os.openpty()
    terminal = Terminal(ours)
    terminal.resize(40, 120)
    given = {"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams}
    environment = {**os.environ, "PS1": "% ", "TERM": "dumb", "HISTFILE": ""}
    words = ["setsid", "--ctty", *command] if given["stdin"] == theirs else list(command)
    try:
        process = subprocess.Popen(words, env=environment, **given)  # type: ignore[call-overload]
        os.close(theirs)
        try:
            yield process, terminal
        finally:
            process.kill()
            process.wait()
    finally:
        terminal.close()
