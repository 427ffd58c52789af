"""One accepted connection, from its first byte to its close, and the transport of its bytes."""

import select
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from progressd.net.connection_log import LogEntry
from progressd.net.handshake import PREFIX, HandshakeRequest, read_handshake
from progressd.net.request import BasePath

MAX_RECEIVE: Final = 65536  # bytes in one read
HEAD_READ: Final = 4096  # bytes of a request head in one read
TLS_HELLO: Final = b"\x16"  # the first byte of a TLS handshake (RFC 8446 §5.1): no request head follows
LINGER_TIMEOUT: Final = 2.0  # seconds for the peer to read the last bytes before its socket is closed


class Transport(Protocol):
    """A non-blocking socket, or TLS on one. `socket` carries ciphertext under TLS."""

    socket: socket.socket

    @property
    def send(self) -> Callable[[bytes], int]:
        """Write bytes; return how many the socket took. Raises BlockingIOError if none, OSError if broken."""

    async def wait_writable(self) -> None:
        """Wait until `send` accepts bytes. Raises ClosedResourceError."""

    def receive_nowait(self, max_bytes: int) -> bytes:
        """Return the bytes that have arrived, or b"" if `receive_some` has to be called."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return the next bytes, or b"" at the end. Raises BrokenResourceError, ClosedResourceError."""

    async def send_eof(self) -> None:
        """Signal end of file to the peer. Raises BrokenResourceError, ClosedResourceError."""

    def close(self) -> None:
        """Close the socket at once. Tasks that wait for it get ClosedResourceError."""


class SocketTransport:
    """A plain socket. `net/tls` has the transport with TLS."""

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

    def receive_nowait(self, max_bytes: int) -> bytes:
        try:
            return self.socket.recv(max_bytes)
        except OSError:  # no bytes have arrived, or the socket is broken
            return b""

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


class Connection:
    """A transport, the peer's address, the entry in the connection log, and bytes read but not used.

    Behind a proxy `address` is the proxy's.
    """

    __slots__ = ("_handshake", "address", "log_entry", "transport", "unread")

    def __init__(self, transport: Transport, address: str, log_entry: LogEntry) -> None:
        self.transport = transport
        self.address = address
        self.log_entry = log_entry
        self.unread = b""
        self._handshake: HandshakeRequest | None = None

    def receive_some(self, max_bytes: int = MAX_RECEIVE) -> Awaitable[bytes]:
        """Return the next bytes, first those that were pushed back, or b"" at the end.

        Raises BrokenResourceError, ClosedResourceError. Not a coroutine: each idle connection would keep its frame.
        """
        return self._receive_unread(max_bytes) if self.unread else self.transport.receive_some(max_bytes)

    def push_back(self, data: bytes) -> None:
        """Let these bytes be received next."""
        self.unread = data + self.unread

    def read_head_nowait(self, max_bytes: int) -> bool:
        """Read the bytes that have arrived. Call this first. Return whether `read_head` has nothing left to read."""
        self.unread = self.transport.receive_nowait(min(HEAD_READ, max_bytes))
        if not self._has_head(max_bytes):
            return False
        self.unread = self.unread.removeprefix(b"\r\n")
        return True

    async def read_head(self, max_bytes: int) -> None:
        """Read until `unread` holds a request head, `max_bytes`, the start of a TLS handshake, or the end.

        Skips an empty line before the head (RFC 9112 §2.2).
        """
        while not self._has_head(max_bytes):
            data = await self.transport.receive_some(min(HEAD_READ, max_bytes - len(self.unread)))
            if not data:
                break
            self.unread += data
        self.unread = self.unread.removeprefix(b"\r\n")

    def wants_websocket(self, base: BasePath) -> bool:
        """Return whether `unread` starts with a valid WebSocket handshake; HTTP answers an invalid one.

        The handshake is then removed from `unread`, and `take_handshake` returns it.
        """
        head = base.strip_head(self.unread)
        if head.startswith(PREFIX):
            self.unread = head
        self._handshake = read_handshake(self.unread)
        if self._handshake is None:
            return False
        self.unread = self.unread[self._handshake.size :]
        return True

    def take_handshake(self) -> HandshakeRequest:
        """Return the handshake and drop the reference to it."""
        handshake, self._handshake = self._handshake, None
        assert handshake is not None
        return handshake

    @property
    def closed(self) -> bool:
        """Return whether the socket is closed on this side."""
        return self.transport.socket.fileno() < 0

    def peer_has_left(self) -> bool:
        """Return whether the peer has closed its side or reset the connection, even if unread bytes precede that."""
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.transport.socket, select.POLLRDHUP)  # poll always reports POLLHUP and POLLERR too
        return bool(poll.poll(0))

    async def shut_down(self) -> None:
        """Let the peer read the last bytes, then close: a close with unread bytes would reset the connection."""
        if self.closed:
            return
        with trio.move_on_after(LINGER_TIMEOUT):
            await self.transport.send_eof()
            while await self.receive_some():
                pass
        self.close()

    def close(self) -> None:
        """Close the socket at once."""
        self.transport.close()

    def _has_head(self, max_bytes: int) -> bool:
        return b"\r\n\r\n" in self.unread or len(self.unread) >= max_bytes or self.unread.startswith(TLS_HELLO)

    async def _receive_unread(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        data, self.unread = self.unread[:max_bytes], self.unread[max_bytes:]
        return data
