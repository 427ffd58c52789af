"""The outputs of the log: a file, pipe or terminal, or the journal of systemd; and the queue before each.

Logging never blocks: a thread writes, and a stuck reader blocks only this thread. `logging.handlers.QueueListener` is
bounded in lines instead of bytes, and does not count the lines it drops. O_NONBLOCK is no alternative: other processes
share the open file.
"""

import errno
import fcntl
import os
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

MAX_BYTES: Final = 1024 * 1024  # of queued lines
CLOSE_TIMEOUT: Final = 1.0  # seconds to write the queued lines at exit
JOURNAL: Final = "/run/systemd/journal/socket"
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)
KNOWN: Final = {"message", "level", "timestamp"}  # the journal has its own fields for these keys
SEALED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class LogQueue:
    """Pass lines to `write` in order, which may block. If it raises OSError, the line is dropped.

    `notice` makes a line with the number of dropped lines. It is written once the queue is empty. `end` is called after
    the last line.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        notice: Callable[[int], bytes],
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._write_line = write
        self._notice = notice
        self._end = end
        self._lines = deque[bytes]()
        self._size = 0
        self._dropped = 0
        self._changed = threading.Condition()  # reentrant: the garbage collector may log while it is held
        self._closed = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def msg(self, line: bytes) -> None:
        """Queue a line without blocking. Drop it if the queue is full, or was full and has not been empty since."""
        with self._changed:
            if self._closed or (self._lines and (self._dropped or self._size + len(line) > MAX_BYTES)):
                self._dropped += 1
                return
            self._lines.append(line)
            self._size += len(line)
            self._changed.notify_all()

    debug = info = warning = error = critical = log = exception = msg  # structlog calls the method of the level

    def close(self) -> None:
        """Write the queued lines, for at most CLOSE_TIMEOUT, and drop later lines."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, CLOSE_TIMEOUT)
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if self._closed:
                    self._end()
                    return
                line = self._lines[0]
            written = self._write(line)
            with self._changed:
                self._dropped += not written
                reported = self._dropped if written and len(self._lines) == 1 else 0
                self._dropped -= reported
            noticed = not reported or self._write(self._notice(reported))
            with self._changed:
                self._dropped += 0 if noticed else reported
                self._size -= len(self._lines.popleft())
                self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        try:
            self._write_line(line)
        except OSError:
            return False
        return True


class Journal:
    """The native protocol of systemd's journal: each message has a priority, and its keys are fields.

    So `journalctl JOB_ID=…` shows one job, and `journalctl -p warning` shows problems
    (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/). A write blocks while the journal is busy.
    """

    def __init__(self, path: str = JOURNAL) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # unconnected: the journal may restart

    def write(self, data: bytes) -> None:
        """Send a message. Raises OSError."""
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(data)

    def _send_file(self, data: bytes) -> None:
        """Send a message that exceeds a datagram as a sealed memory file."""
        with open(os.memfd_create("progressd-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb", buffering=0) as file:
            os.write(file.fileno(), data)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALED)
            rights = struct.pack("i", file.fileno())
            self._socket.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, self._path)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def stderr_is_journal() -> bool:
    """Return whether systemd has connected stderr to the journal (systemd.exec(5), `$JOURNAL_STREAM`)."""
    if "JOURNAL_STREAM" not in os.environ or sys.stderr is None:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ["JOURNAL_STREAM"] == f"{status.st_dev}:{status.st_ino}"


def datagram(event: Mapping[str, Any], text: str) -> bytes:
    """Encode an event with `message`, `level` and other keys. `text` shows these keys in the message."""
    fields = {
        "MESSAGE": f"{event['message']} {text}".rstrip(),
        "PRIORITY": PRIORITIES[event["level"]],
        "SYSLOG_IDENTIFIER": "progressd",
        **{key.lstrip("_").upper(): value for key, value in event.items() if key not in KNOWN},
    }
    return b"".join(
        _field(name.encode(), str(value).encode(errors="backslashreplace")) for name, value in fields.items()
    )


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name, struct.pack("<Q", len(value)), value)
    return b"%b=%b\n" % (name, value)
