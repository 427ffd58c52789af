"""Accepting connections on a listening socket, also when descriptors run short."""

import errno
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog
import trio

OUT_OF_DESCRIPTORS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
CAME_TO_NOTHING: Final = {  # what befell a connection before it was accepted, and no fault of ours: accept(2)
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
BACKLOG: Final = 4096  # connections that wait to be accepted; the kernel cuts it to net.core.somaxconn
PAUSE: Final = 0.1  # seconds until the next try when they have run out
ACCEPT_BATCH: Final = 16  # connections in one turn of the event loop, 1 ms; with 1 a busy daemon lets newcomers wait

log = structlog.get_logger(__name__)


class ListeningSocket(socket.socket):
    """A listening socket that counts who comes to accept, so that one can see whether anybody does.

    `lasting`: systemd holds it too, and the next daemon accepts what waits in it.
    """

    tries = 0
    lasting = False

    @classmethod
    def over(cls, sock: socket.socket) -> "ListeningSocket":
        """Take over a plain socket."""
        listening = cls(fileno=sock.detach())
        listening.setblocking(False)
        return listening

    def accept(self) -> tuple[socket.socket, Any]:
        """As every socket does."""
        self.tries += 1
        return super().accept()

    async def accepts(self) -> None:
        """Come back once nobody waits, or somebody has come to accept, even if no descriptor was left for it."""
        waiting = select.poll()
        waiting.register(self, select.POLLIN)
        before = self.tries
        while self.tries == before and waiting.poll(0):  # noqa: ASYNC110, nothing tells
            await trio.sleep(PAUSE)


def accept_waiting(listening: socket.socket, most: int) -> Iterator[tuple[socket.socket, str]]:
    """Yield the connections that wait, plain and non-blocking, and the address each is from.

    The address of a Unix socket is "unix". Raises BlockingIOError after the last one, and OSError.
    """
    for _ in range(most):
        sock, address = listening.accept()
        sock.setblocking(False)
        yield sock, str(address[0]) if isinstance(address, tuple) else "unix"


async def accept_forever(listening: socket.socket, accepted: Callable[[socket.socket, str], None]) -> None:
    """Hand each connection to `accepted`, as `accept_waiting` has it, until cancelled. `listening` stays open."""
    short = False
    while True:
        await trio.lowlevel.wait_readable(listening)
        try:
            for sock, address in accept_waiting(listening, ACCEPT_BATCH):
                short = False
                accepted(sock, address)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno in CAME_TO_NOTHING:
                continue
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
            if not short:  # said once, not ten times a second
                log.warning("cannot accept connections for now", error=str(error))
            short = True
            await trio.sleep(PAUSE)
