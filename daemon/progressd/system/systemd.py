"""What systemd and the daemon tell each other: sd_notify(3) and sd_listen_fds(3). Without systemd nothing happens."""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

import structlog

FIRST_DESCRIPTOR: Final = 3
REPEATED: Final = ("STATUS=", "WATCHDOG=")  # of which an old one is of no use

log = structlog.get_logger(__name__)


class Notifier:
    """Tells systemd how the service is. Takes the address out of the environment, lest our children use it.

    Its socket stays open, for it has to speak also when descriptors have run out.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._owed: dict[str, str] = {}  # by their first assignment, messages that systemd did not take
        self._failing = False
        if address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    def close(self) -> None:
        """It says no more."""
        if self._socket is not None:
            self._socket.close()

    def __call__(self, *assignments: str) -> bool:
        """Send assignments such as `READY=1`; whether systemd has them. It neither waits nor raises an error.

        What systemd does not take, except for what callers repeat, comes first in the next call, which may be an empty
        one; of READY=1, RELOADING=1 and STOPPING=1 only the last of each, which is all that still matters.
        """
        if self._socket is None:
            return True
        if assignments:
            self._owed.pop(assignments[0], None)  # so that the new one comes last
            self._owed[assignments[0]] = "\n".join(assignments)
        try:
            for first, message in list(self._owed.items()):
                self._socket.sendto(message.encode(), self._address)
                del self._owed[first]
        except OSError as error:
            if not self._failing:  # said once, not with every sign of life
                log.warning("cannot tell systemd how the service is", error=str(error))
            self._failing = True
            self._owed = {first: text for first, text in self._owed.items() if not first.startswith(REPEATED)}
            return False
        self._failing = False
        return True


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that systemd has opened for us, non-blocking, none of which our children inherit."""
    count, pid = environ.pop("LISTEN_FDS", "0"), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return []
    sockets = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        listening = socket.socket(fileno=descriptor)
        listening.setblocking(False)
        sockets.append(listening)
    return sockets
