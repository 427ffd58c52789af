"""The user's terminal while a command runs: keys, the size, and job control."""

import contextlib
import os
import signal
from typing import Final

import trio

from progressd.client.run.launch import TO_BACKGROUND, TO_FOREGROUND, Command
from progressd.client.run.terminal import Terminal, typed_signals

FOREGROUND_INTERVAL: Final = 0.25  # seconds between checks whether a shell has put us into the foreground
MAX_KEYS: Final = 4096  # bytes to read from a terminal at once


class TerminalSession:
    """Pass on keys, the size of the terminal, and job control. `gone` is set when the command has exited.

    `typed`: signals that a key has sent to the command, and that we have sent to ourselves.
    """

    def __init__(self, command: Command, terminal: Terminal, master: int, gone: trio.Event) -> None:
        self.typed = list[int]()
        self._command = command
        self._terminal = terminal
        self._master = master
        self._gone = gone
        self._has_terminal = False

    def foreground_group(self) -> int:
        """Return the process group in the foreground of the pseudo-terminal; 0 if there is none."""
        try:
            return os.tcgetpgrp(self._master)
        except OSError:
            return 0

    def stop(self) -> None:
        """Stop when the command stops, after Ctrl-Z. Continue it when a shell continues us."""
        self._terminal.restore()
        os.killpg(os.getpgrp(), signal.SIGTSTP)  # returns when a shell continues us
        self._continue()

    async def run(self) -> None:
        """Pass on the size of the terminal, and what the user types if the command has a session."""
        with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGCONT) as changes:
            async with trio.open_nursery() as nursery:
                if self._command.has_session:
                    nursery.start_soon(self._pass_on_keys)
                self._follow_terminal(signal.SIGWINCH)
                async for number in changes:
                    self._follow_terminal(number)

    def _follow_terminal(self, number: int) -> None:
        if self._gone.is_set():
            return
        if number == signal.SIGCONT and self._command.has_session:
            self._continue()
        elif self._terminal.copy_size(self._master) and not self._command.has_session:
            os.killpg(os.getpgrp(), signal.SIGWINCH)  # the command may have read the old size after the first signal

    async def _pass_on_keys(self) -> None:
        self._has_terminal = self._terminal.in_foreground()
        while not self._gone.is_set():
            if self._terminal.in_foreground() is not self._has_terminal:
                self._continue()
            if not self._has_terminal:
                await trio.sleep(FOREGROUND_INTERVAL)
                continue
            try:
                await trio.lowlevel.wait_readable(self._terminal.descriptor)
                if self._gone.is_set() or not self._terminal.in_foreground():
                    continue
                keys = os.read(self._terminal.descriptor, MAX_KEYS)
            except BlockingIOError:
                continue
            except OSError:  # the terminal was closed
                return
            if not keys:
                return
            typed = typed_signals(self._master, keys)
            while keys:
                try:
                    keys = keys[os.write(self._master, keys) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._master)
                except OSError:
                    return
            for number in typed:
                self.typed.append(number)
                os.killpg(os.getpgrp(), number)  # the others in a pipeline, and us

    def _continue(self) -> None:
        """Give the command the terminal if we have it, and continue the command if it was stopped."""
        self._has_terminal = self._terminal.in_foreground()
        if self._has_terminal:
            self._terminal.enter_foreground(self._master)
        else:
            self._terminal.enter_background(self._master)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._command.pid, TO_FOREGROUND if self._has_terminal else TO_BACKGROUND)
