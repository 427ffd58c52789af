"""The transport of a connection's bytes: a plain socket here, TLS in `net/tls`."""

import socket
from collections.abc import Callable
from typing import Final, Protocol

import trio

MAX_RECEIVE: Final = 65536  # bytes in one read


class Transport(Protocol):
    """A non-blocking socket, or TLS on one. `socket` carries ciphertext under TLS."""

    socket: socket.socket

    @property
    def send(self) -> Callable[[bytes], int]:
        """Write bytes; return how many the socket took. Raises BlockingIOError if none, OSError if broken."""

    async def wait_writable(self) -> None:
        """Wait until `send` accepts bytes. Raises ClosedResourceError."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return the next bytes, or b"" at the end. Raises BrokenResourceError, ClosedResourceError."""

    async def send_eof(self) -> None:
        """Signal the end of the bytes to the peer. Raises BrokenResourceError, ClosedResourceError."""

    def close(self) -> None:
        """Close the socket at once. Tasks that wait for it get ClosedResourceError."""


class SocketTransport:
    """A plain socket."""

    __slots__ = ("socket",)

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @property
    def send(self) -> Callable[[bytes], int]:
        # Not a Python method: the fan-out calls this for each watcher, and from C.
        return self.socket.send

    async def wait_writable(self) -> None:
        require_open(self.socket)
        await trio.lowlevel.wait_writable(self.socket)

    async def receive_some(self, max_bytes: int) -> bytes:
        # SocketStream.receive_some would keep 1.1 KiB of frames for each waiting connection.
        while True:
            require_open(self.socket)
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_eof(self) -> None:
        require_open(self.socket)
        await trio.lowlevel.checkpoint()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError from error

    def close(self) -> None:
        close_socket(self.socket)


def require_open(sock: socket.socket) -> None:
    """Raise ClosedResourceError if the socket is closed."""
    if sock.fileno() < 0:
        raise trio.ClosedResourceError


def close_socket(sock: socket.socket) -> None:
    """Close a socket and wake the tasks waiting for it."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()
