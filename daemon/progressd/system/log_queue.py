"""A bounded queue of log lines, and the thread that writes them. A stuck reader blocks only this thread.

`logging.handlers.QueueListener` is bounded in lines instead of bytes, and does not count the lines it drops. O_NONBLOCK
is no alternative: other processes share the open file.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

MAX_BYTES: Final = 1024 * 1024  # of queued lines
CLOSE_TIMEOUT: Final = 1.0  # seconds to write the queued lines at exit


class Output(Protocol):
    """The destination of the lines."""

    def write(self, line: bytes) -> None:
        """Write a line. May block. Raises OSError."""

    def close(self) -> None:
        """Close the destination."""


class LogQueue:
    """Write lines to `output` in order. If `output` raises OSError, the line is dropped.

    `notice` makes a line with the number of dropped lines. It is written once the queue is empty.
    """

    def __init__(self, output: Output, notice: Callable[[int], bytes]) -> None:
        self._output = output
        self._notice = notice
        self._lines = deque[tuple[bytes, int]]()  # with weights: a notice counts as the lines it reports
        self._size = 0
        self._dropped = 0
        self._changed = threading.Condition()  # reentrant: the garbage collector may log while it is held
        self._running = False
        self._closed = False

    def msg(self, line: bytes) -> None:
        """Queue a line without blocking. Drop it if the queue is full, or was full and has not been empty since."""
        with self._changed:
            if self._closed or (self._lines and (self._dropped or self._size + len(line) > MAX_BYTES)):
                self._dropped += 1
                return
            self._append(line, 1)
            if not self._running:
                self._start()

    debug = info = warning = error = critical = log = exception = msg  # structlog calls the method of the level

    def close(self) -> None:
        """Write the queued lines, for at most CLOSE_TIMEOUT, and drop later lines."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, CLOSE_TIMEOUT)
            self._closed = True
            if self._running:
                self._changed.notify_all()
            else:
                self._output.close()

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="log", daemon=True).start()
        except RuntimeError:  # no thread available; the next line retries
            return
        self._running = True

    def _append(self, line: bytes, weight: int) -> None:
        self._lines.append((line, weight))
        self._size += len(line)
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if self._closed:
                    self._output.close()
                    return
                line, weight = self._lines[0]
            written = self._write(line)
            with self._changed:
                self._lines.popleft()
                self._size -= len(line)
                if not written:
                    self._dropped += weight
                elif self._dropped and not self._lines:
                    dropped, self._dropped = self._dropped, 0
                    self._append(self._notice(dropped), dropped)
                self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        try:
            self._output.write(line)
        except OSError:
            return False
        return True
