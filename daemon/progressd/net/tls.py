"""A connection under TLS, with the same face as a plain one: what is sent is encrypted on the way to the socket.

The outbox and Hypercorn write to `send` and `stream`, and know of nothing but plaintext; there is no way around these
to the socket. Encrypting takes whole records, so what the socket does not take of the last one is kept here, and until
that is gone `send` takes nothing: it blocks, as a full socket does.
"""

import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from progressd.config.settings import Settings
from progressd.core.messages import encode
from progressd.net.connection_log import PLAIN_TO_TLS
from progressd.net.headers import ALWAYS
from progressd.net.listener import MAX_RECEIVE, Connection, Encrypted
from progressd.net.tls_context import tls_context
from progressd.system.pass_limiter import PassLimiter

PLAIN_TEXT_ERROR: Final = encode({"error": "TLS is spoken at this port: use https:// or wss://"})
PLAIN_TEXT_RESPONSE: Final = (  # to a request without TLS
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n%b\r\n\r\n%b"
    % (len(PLAIN_TEXT_ERROR), b"\r\n".join([b"%b: %b" % pair for pair in ALWAYS]), PLAIN_TEXT_ERROR)
)
HANDSHAKES: Final = 1  # in one pass of the event loop; one takes 6 ms with RSA and 4096 bits, 1 ms with 2048
MAX_RECORD: Final = 16 * 1024  # bytes of plaintext in one record (RFC 8446 §5.1)


class TLSConnection(Connection):
    """`start` runs a task that ends with the connection. `handshakes` limits those of all connections."""

    __slots__ = ("_ended", "_flushed", "_handshakes", "_incoming", "_outgoing", "_pending", "_plain", "_start", "_tls")

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        context: ssl.SSLContext,
        start: Callable[[Callable[[], Awaitable[None]]], None],
        handshakes: PassLimiter,
    ) -> None:
        super().__init__(sock, peer)
        self._handshakes = handshakes
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._pending = b""  # encrypted, and still to be sent
        self._flushed: trio.Event | None = None  # while a task waits for room
        self._ended = False  # nothing more is said, and what comes is let go of
        self._plain: TLSStream | None = None
        self._start = start
        self.send = self._encrypt

    @property
    def stream(self) -> "TLSStream":  # type: ignore[override]
        if self._plain is None:
            self._plain = TLSStream(self)
        return self._plain

    async def wait_writable(self) -> None:
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError
        await self._have_flushed().wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.unread:
            return await super().receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        while True:
            if not self._ended:
                try:
                    return self._tls.read(max_bytes or MAX_RECEIVE)  # which shakes hands first
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
                except ssl.SSLError as error:
                    if error.reason != "HTTP_REQUEST":
                        raise trio.BrokenResourceError from error
                    self.fate, self._ended, self._pending = PLAIN_TO_TLS, True, PLAIN_TEXT_RESPONSE
                    return b""
                finally:
                    self._push()
            await trio.lowlevel.wait_readable(self.socket)
            try:
                data = self.socket.recv(MAX_RECEIVE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error
            if self._ended and not data:
                return b""
            if not self._ended:
                self._incoming.write(data) if data else self._incoming.write_eof()
                if self._tls.version() is None:  # the handshake is not complete
                    await self._handshakes.pass_through(1)

    async def end(self) -> None:
        """Say that nothing more comes. Raises BrokenResourceError, ClosedResourceError."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(ssl.SSLError):  # it waits for the peer's own end, or there was no handshake
                self._tls.unwrap()
            self._push()
        await self.wait_writable()
        await super().end()

    def close(self) -> None:
        """Close the socket at once, and drop what refers back to this."""
        super().close()
        self._plain = None
        del self.send

    def _encrypt(self, data: bytes) -> int:
        """As `send` of a non-blocking socket."""
        if self._pending:
            raise BlockingIOError
        try:
            taken = 0
            while taken < len(data) and not self._pending:
                taken += self._tls.write(data[taken : taken + MAX_RECORD])
                self._push()
        except ssl.SSLError as error:
            raise BrokenPipeError(str(error)) from None
        return taken

    def _push(self) -> None:
        """Send what is encrypted, or have it sent once there is room."""
        self._pending += self._outgoing.read()
        if self._pending and self._flushed is None:
            self._send_pending()
            if self._pending:
                self._have_flushed()

    def _have_flushed(self) -> trio.Event:
        """Set when the socket has taken all that is pending, and has room. One task alone waits for that: Trio allows
        no second one at a socket.
        """
        if self._flushed is None:
            self._flushed = trio.Event()
            self._start(self._flush)
        return self._flushed

    def _send_pending(self) -> None:
        try:
            self._pending = self._pending[self.socket.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # the peer is gone, and whoever reads finds out as well
            self._pending = b""

    async def _flush(self) -> None:
        assert self._flushed is not None
        try:
            while True:
                await trio.lowlevel.wait_writable(self.socket)
                self._send_pending()
                if not self._pending:
                    break
        except (OSError, trio.ClosedResourceError):
            self._pending = b""
        finally:
            flushed, self._flushed = self._flushed, None
            flushed.set()


class TLSStream(trio.abc.HalfCloseableStream):
    """What the HTTP side reads from and writes to."""

    def __init__(self, connection: TLSConnection) -> None:
        self._connection = connection
        self.socket = trio.socket.from_stdlib_socket(connection.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._connection.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._connection.send(bytes(rest[:MAX_RECEIVE])) :]
            except BlockingIOError:
                await self._connection.wait_writable()
            except OSError as error:
                raise trio.BrokenResourceError from error
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self._connection.wait_writable()

    async def send_eof(self) -> None:
        await self._connection.end()

    async def aclose(self) -> None:
        self.socket.close()
        await trio.lowlevel.checkpoint()


def tls_factory(settings: Settings, before: Settings | None = None) -> Encrypted | None:
    """What makes the connections of the port, where they are under TLS; `before`: in force. Raises SettingsError."""
    context = tls_context(settings.server, None if before is None else before.server)
    if context is None:
        return None
    handshakes = PassLimiter(HANDSHAKES)
    return lambda sock, peer, start: TLSConnection(sock, peer, context, start, handshakes)
