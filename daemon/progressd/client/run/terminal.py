"""The user's terminal, and the pseudo-terminal of a command."""

import contextlib
import fcntl
import os
import struct
import termios
import tty
from typing import Any, Final

SIZE: Final = struct.Struct("HHHH")  # rows, columns, and pixels (ioctl_tty(2))
FIRST_FREE: Final = 10  # our descriptors begin here
OFLAG: Final = 1  # index of the output modes in the settings (termios(3))
LFLAG: Final = 3
CC: Final = 6
MAX_UNREAD: Final = 4096  # bytes; the kernel keeps no more
DISCARD: Final = b"\0"  # the value of a control character that is switched off


def moved_up(descriptor: int) -> int:
    """Move a descriptor to a high number, so that it does not take a low one that the user has closed."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    os.close(descriptor)
    return moved


class Terminal:
    """The terminal at a descriptor. Raises termios.error or OSError if the descriptor is not a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._saved = termios.tcgetattr(descriptor)
        self._raw: list[Any] | None = None
        self._entered = False  # `enter_foreground` was called
        try:  # with a file description of our own, O_NONBLOCK affects no other program
            flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            self.descriptor = moved_up(os.open(os.ttyname(descriptor), flags))
        except OSError:  # such as in a container: its /dev/pts has no such terminal
            self.descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)

    def in_foreground(self) -> bool:
        """Return whether this process group may read from the terminal."""
        try:
            return os.tcgetpgrp(self.descriptor) == os.getpgrp()
        except OSError:  # it is not the controlling terminal, so there is no job control
            return True

    def enter_foreground(self, master: int) -> None:
        """Pass every key and every byte on unchanged, so that the pseudo-terminal processes them. See `restore`."""
        with contextlib.suppress(termios.error):
            now = termios.tcgetattr(self.descriptor)
            if now != self._raw:
                self._saved = now
                tty.setraw(self.descriptor, termios.TCSANOW)
                self._raw = termios.tcgetattr(self.descriptor)
            settings = termios.tcgetattr(master) if self._entered else now
            self._entered = True
            settings[OFLAG] |= now[OFLAG] & termios.OPOST
            termios.tcsetattr(master, termios.TCSANOW, settings)
        self.copy_size(master)

    def enter_background(self, master: int) -> None:
        """Let the terminal process the output again."""
        with contextlib.suppress(termios.error):
            settings = termios.tcgetattr(master)
            settings[OFLAG] &= ~termios.OPOST
            termios.tcsetattr(master, termios.TCSANOW, settings)

    def restore(self) -> None:
        """Undo `enter_foreground`."""
        if self._raw is not None:
            self._raw = None
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self._saved)

    def new_pty(self) -> tuple[int, int]:
        """Return both ends of a pseudo-terminal, with the size and settings of this terminal."""
        master, slave = map(moved_up, os.openpty())
        termios.tcsetattr(slave, termios.TCSANOW, self._saved)
        self.enter_background(master)
        self.copy_size(master)
        return master, slave

    def give_back(self, keys: bytes) -> None:
        """Let the next program read keys that the command has not read, if the kernel permits that (TIOCSTI)."""
        with contextlib.suppress(OSError):
            for key in keys:
                fcntl.ioctl(self.descriptor, termios.TIOCSTI, bytes([key]))

    def copy_size(self, master: int) -> bool:
        """Give a pseudo-terminal the size of this one. Return whether its size changed."""
        try:
            size = fcntl.ioctl(self.descriptor, termios.TIOCGWINSZ, bytes(SIZE.size))
            if size == fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(SIZE.size)):
                return False
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)
        except OSError:
            return False
        return True


def unread(terminal: int) -> bytes:
    """Return the input of a terminal that no program has read. The terminal must not be used afterwards."""
    try:
        settings = termios.tcgetattr(terminal)
        settings[LFLAG] &= ~(termios.ICANON | termios.ECHO)
        settings[CC][termios.VMIN] = settings[CC][termios.VTIME] = 0
        termios.tcsetattr(terminal, termios.TCSANOW, settings)
        return os.read(terminal, MAX_UNREAD)
    except (OSError, termios.error):
        return b""


def typed_signals(master: int, keys: bytes) -> list[int]:
    """Return the signals that a pseudo-terminal sends for these keys, without those for a stop."""
    import signal

    try:
        settings = termios.tcgetattr(master)
    except termios.error:
        return []
    if not settings[LFLAG] & termios.ISIG:
        return []
    characters = settings[CC]
    meanings = {characters[termios.VINTR]: signal.SIGINT, characters[termios.VQUIT]: signal.SIGQUIT}
    meanings.pop(DISCARD, None)
    return [meanings[key] for number in keys if (key := bytes([number])) in meanings]
