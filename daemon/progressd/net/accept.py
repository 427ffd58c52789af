"""Accept connections on a listening socket, even if file descriptors run out."""

import errno
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog
import trio

OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
CONNECTION_FAILED: Final = {  # connection errors before the accept: accept(2)
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EPERM,
    errno.EPROTO,
}
BACKLOG: Final = 4096  # connections waiting to be accepted; the kernel limits them to net.core.somaxconn
RETRY_INTERVAL: Final = 0.1  # seconds
ACCEPT_BATCH: Final = 16  # connections in one pass of the event loop, 1 ms

log = structlog.get_logger(__name__)


class ListeningSocket(socket.socket):
    """A listening socket that counts calls of `accept`, so that the watchdog can check for them.

    held_by_systemd: the next daemon accepts the waiting connections.
    """

    tries = 0

    def __init__(self, fileno: int, *, held_by_systemd: bool = False) -> None:
        super().__init__(fileno=fileno)
        self.setblocking(False)
        self.held_by_systemd = held_by_systemd

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        self.tries += 1
        return super().accept()

    async def accepts(self) -> None:
        """Wait until no connection is waiting or `accept` was called, even if it found no free descriptor."""
        waiting = select.poll()
        waiting.register(self, select.POLLIN)
        before = self.tries
        while self.tries == before and waiting.poll(0):  # noqa: ASYNC110, no event reports it
            await trio.sleep(RETRY_INTERVAL)


def accept_waiting(listening: socket.socket, limit: int) -> Iterator[tuple[socket.socket, str]]:
    """Yield each waiting connection, non-blocking, and its address, "unix" for a Unix socket.

    Raises BlockingIOError after the last one, and OSError.
    """
    for _ in range(limit):
        sock, address = listening.accept()
        sock.setblocking(False)
        yield sock, str(address[0]) if isinstance(address, tuple) else "unix"


async def accept_forever(listening: socket.socket, accepted: Callable[[socket.socket, str], None]) -> None:
    """Pass each connection and its address to `accepted` until cancelled. `listening` stays open."""
    warned = False
    while True:
        await trio.lowlevel.wait_readable(listening)
        try:
            for sock, address in accept_waiting(listening, ACCEPT_BATCH):
                warned = False
                accepted(sock, address)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno in CONNECTION_FAILED:
                continue
            if error.errno not in OUT_OF_RESOURCES:
                raise
            if not warned:
                log.warning("cannot accept connections for now", error=str(error))
            warned = True
            await trio.sleep(RETRY_INTERVAL)
