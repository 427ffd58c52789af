"""What systemd and the daemon tell each other: sd_notify(3) and sd_listen_fds(3). Without systemd nothing happens."""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

FIRST_DESCRIPTOR: Final = 3


class Notifier:
    """Tells systemd how the service is. Takes the address out of the environment, lest our children use it.

    Its socket stays open, for it has to speak also when descriptors have run out.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None

    def close(self) -> None:
        """It says no more."""
        if self._socket is not None:
            self._socket.close()

    def __call__(self, *assignments: str) -> None:
        """Send assignments such as `READY=1`. Raises OSError when systemd cannot be reached."""
        if self._socket is not None:
            self._socket.sendto("\n".join(assignments).encode(), self._address)


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
