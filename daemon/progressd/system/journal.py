"""The native protocol of systemd's journal: each message has a priority, and its keys are fields.

So `journalctl JOB_ID=…` shows one job, and `journalctl -p warning` shows problems
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
"""

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any, Final

SOCKET: Final = "/run/systemd/journal/socket"
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)
KNOWN: Final = {"message", "level", "timestamp"}  # the journal has its own fields for these keys
SEALED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


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


class Journal:
    """The socket of the journal. A write blocks while the journal is busy."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM
        )  # unconnected: a restarted journal has a new socket

    def write(self, data: bytes) -> None:
        """Send a message. Raises OSError."""
        try:
            self._socket.sendto(data, SOCKET)
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
            self._socket.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, SOCKET)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
