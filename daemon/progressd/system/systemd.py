"""The protocols of systemd: sd_notify(3) and sd_listen_fds(3). Without systemd they do nothing."""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

import structlog

FIRST_DESCRIPTOR: Final = 3
REPEATED: Final = ("STATUS=", "WATCHDOG=")  # messages that become useless when old

log = structlog.get_logger(__name__)


class Notifier:
    """Notify systemd. The address is removed from the environment, so that children cannot use it.

    The socket stays open, because notifications must work even without free descriptors.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._pending: dict[str, str] = {}  # unsent messages by their first assignment
        self._failing = False
        if address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def __call__(self, *assignments: str) -> bool:
        """Send assignments such as `READY=1` without blocking. Return whether systemd has received all of them.

        The next call, which may be empty, first resends failed messages: the last READY=1, RELOADING=1 and STOPPING=1.
        Messages that callers repeat anyway are not kept.
        """
        if self._socket is None:
            return True
        if assignments:
            self._pending.pop(assignments[0], None)  # the new message goes last
            self._pending[assignments[0]] = "\n".join(assignments)
        try:
            for first, message in list(self._pending.items()):
                self._socket.sendto(message.encode(), self._address)
                del self._pending[first]
        except OSError as error:
            if not self._failing:  # log once, not for each watchdog message
                log.warning("cannot notify systemd", error=str(error))
            self._failing = True
            self._pending = {first: text for first, text in self._pending.items() if not first.startswith(REPEATED)}
            return False
        self._failing = False
        return True


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets from systemd, non-blocking and not inheritable."""
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
