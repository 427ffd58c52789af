"""TLS on a connection: the certificate, and a transport that encrypts sent data.

The outbox and the HTTP server send and receive plaintext. Encryption produces whole records, so the rest of a record
that does not fit into the socket is kept here. Until it is sent, `send` accepts nothing, like a full socket.
"""

import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from progressd.config.settings import Server
from progressd.core.errors import InvalidInput, SettingsError
from progressd.core.messages import encode
from progressd.net.connection import MAX_RECEIVE, SocketTransport, require_open
from progressd.net.request import ALWAYS
from progressd.system.condition import Condition
from progressd.system.event_loop_limiter import EventLoopLimiter
from progressd.system.fs import read_regular

PLAIN_TEXT_ERROR: Final = encode({"error": "this port uses TLS: use https:// or wss://", "code": InvalidInput.code})
PLAIN_TEXT_RESPONSE: Final = (  # response to a request without TLS
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n%b\r\n\r\n%b"
    % (len(PLAIN_TEXT_ERROR), b"\r\n".join([b"%b: %b" % pair for pair in ALWAYS]), PLAIN_TEXT_ERROR)
)
MAX_RECORD: Final = 16 * 1024  # bytes of plaintext in one record (RFC 8446 §5.1)
PROTOCOLS: Final = ["http/1.1"]  # for ALPN (RFC 7301); a WebSocket starts as HTTP/1.1 too


class TLSTransport:
    """TLS on a socket. `start` runs a task that must end with the connection.

    `handshakes` limits the handshakes of all connections.
    """

    __slots__ = (
        "_ended",
        "_flushed",
        "_flushing",
        "_handshakes",
        "_incoming",
        "_outgoing",
        "_pending",
        "_socket",
        "_start",
        "_tls",
        "socket",
    )

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        start: Callable[[Callable[[], Awaitable[None]]], None],
        handshakes: EventLoopLimiter,
    ) -> None:
        self.socket = sock
        self._socket = SocketTransport(sock)
        self._handshakes = handshakes
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._pending = b""  # unsent ciphertext
        self._flushing = False  # a task waits for room in the socket: Trio allows only one
        self._flushed = Condition()
        self._ended = False  # no data is sent, and received data is dropped
        self._start = start

    @property
    def send(self) -> Callable[[bytes], int]:
        return self._send

    async def wait_writable(self) -> None:
        require_open(self.socket)
        self._start_flush()
        await self._flushed.wait_for(lambda: not self._flushing)

    def receive_nowait(self, max_bytes: int) -> bytes:
        return b""  # before the TLS handshake

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return the next plaintext. The first call makes the TLS handshake."""
        await trio.lowlevel.checkpoint()
        while True:
            if not self._ended:
                try:
                    return self._tls.read(max_bytes)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
                except ssl.SSLError as error:
                    if error.reason != "HTTP_REQUEST":
                        raise trio.BrokenResourceError from error
                    self._ended, self._pending = True, PLAIN_TEXT_RESPONSE
                    return b""
                finally:
                    self._push()
            data = await self._socket.receive_some(MAX_RECEIVE)
            if self._ended and not data:
                return b""
            if not self._ended:
                self._incoming.write(data) if data else self._incoming.write_eof()
                if self._tls.version() is None:  # the handshake is not complete
                    await self._handshakes.pass_through(1)

    async def send_eof(self) -> None:
        if not self._ended:
            self._ended = True
            with contextlib.suppress(ssl.SSLError):  # the peer has not closed TLS, or never completed a handshake
                self._tls.unwrap()
            self._push()
        await self.wait_writable()
        await self._socket.send_eof()

    def close(self) -> None:
        self._socket.close()

    def _send(self, data: bytes) -> int:
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
        """Send the ciphertext now, or start a task that sends it once the socket has room."""
        self._pending += self._outgoing.read()
        if self._pending and not self._flushing:
            self._send_pending()
            if self._pending:
                self._start_flush()

    def _start_flush(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._start(self._flush)

    def _send_pending(self) -> None:
        try:
            self._pending = self._pending[self.socket.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # the peer disconnected; the reader gets the error too
            self._pending = b""

    async def _flush(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_writable(self.socket)
                self._send_pending()
                if not self._pending:
                    break
        except (OSError, trio.ClosedResourceError):
            self._pending = b""
        finally:
            self._flushing = False
            self._flushed.notify()


def tls_context(server: Server, before: Server | None = None) -> ssl.SSLContext | None:
    """Load `tls_cert` and `tls_key`. Return None without a certificate. Raises SettingsError.

    before: the settings in force. TLS cannot be switched on or off by a reload: clients know the port by its scheme.
    """
    if before is not None and bool(before.tls_cert) is not bool(server.tls_cert):
        change = "was removed" if before.tls_cert else "was added"
        raise SettingsError(f"server.tls_cert {change}: restart the daemon to switch TLS on or off")
    if not server.tls_cert:
        if server.tls_key:
            raise SettingsError("server.tls_key is set without server.tls_cert: set server.tls_cert too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(PROTOCOLS)
    for setting, path in (("tls_cert", server.tls_cert), ("tls_key", server.tls_key)):
        try:
            read_regular(Path(path or server.tls_cert))
        except OSError as error:
            raise SettingsError(f"server.{setting} = {path!r}: {error.strerror}") from None
    try:
        context.load_cert_chain(server.tls_cert, server.tls_key or None, password=_encrypted)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        reason = "the private key does not match the certificate" if mismatch else "no certificate with a private key"
        raise SettingsError(
            f"server.tls_cert = {server.tls_cert!r}: {reason}"
            " (expected both as PEM: in this file, or the key in server.tls_key)"
        ) from None
    return context


def _encrypted() -> str:
    """Raise for an encrypted key. OpenSSL would ask for its password on the terminal."""
    raise SettingsError("server.tls_key: the private key is encrypted (decrypt it: openssl pkey -in KEY -out NEW)")
