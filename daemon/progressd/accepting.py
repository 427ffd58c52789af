"""Accepting connections on a listening socket, also when descriptors run short."""

import errno
import socket
from collections.abc import Callable
from typing import Final

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
PAUSE: Final = 0.1  # seconds until the next try when they have run out

log = structlog.get_logger(__name__)


async def accept_forever(listening: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
    """Hand each connection, a plain non-blocking socket, to `accepted`, until cancelled; `listening` stays open."""
    while True:
        await trio.lowlevel.wait_readable(listening)
        try:
            sock, _ = listening.accept()
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno in CAME_TO_NOTHING:
                continue
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
            log.warning("cannot accept connections for now", error=str(error))
            await trio.sleep(PAUSE)
            continue
        sock.setblocking(False)
        accepted(sock)
