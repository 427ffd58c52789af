"""The one port: accepts connections, reads each request head, and gives the connection to the side it belongs to.

`GET /ws…` with an upgrade goes to the WebSocket side with the bytes already read pushed back; anything else goes to
the HTTP side, which may hand the connection back for an upgrade between two requests. Whatever happens to one
connection ends that connection and nothing else.
"""

import contextlib
import math
import select
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

import structlog
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import Request
from wsproto.utilities import ProtocolError

from progressd.auth.client_address import counted_as, networks, within
from progressd.config.settings import Limits, Settings
from progressd.net.accept import BACKLOG, ListeningSocket, accept_forever, accept_waiting
from progressd.net.base_path import BasePath
from progressd.net.connection_log import (
    ABANDONED,
    CROWDED_OUT,
    SERVED,
    SILENT,
    TLS_TO_PLAIN,
    TOO_MANY_OF_ADDRESS,
    ConnectionLog,
)
from progressd.net.handshake_limiter import HandshakeLimiter

MAX_RECEIVE: Final = 65536
MAX_UNSENT: Final = 16 * 1024  # bytes that wait in the kernel
PREFIX: Final = b"GET /ws"
TLS_HELLO: Final = b"\x16"  # the beginning of the record it comes in (RFC 8446 §5.1), and of no request
ROOT: Final = BasePath()
REQUEST_GRACE: Final = 0.3  # seconds that a request may still take to come in once the daemon stops
LINGER: Final = 2.0  # seconds for a peer to read the last bytes before the socket is closed under it

log = structlog.get_logger(__name__)

Start = Callable[[Callable[[], Awaitable[None]]], None]  # of a task


class HandshakeRequest(NamedTuple):
    """A handshake as wsproto has understood it, and the bytes that it takes. `host`: the header of that name."""

    protocol: WSConnection
    request: Request
    size: int
    host: str


class Connection:
    """An accepted socket, with the bytes that were read from it and not yet used.

    `socket` is the plain non-blocking socket and `stream` the Trio stream over that same socket, which a WebSocket does
    without. `upgrade`: the handshake at the beginning of `unread`, once `wants_websocket` has found one. `idle`: it is
    being closed between two requests, and the peer has nothing left to read.
    """

    __slots__ = ("_stream", "began", "fate", "idle", "peer", "send", "socket", "topics", "unread", "upgrade")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.socket = sock
        with contextlib.suppress(OSError):  # it is no TCP, as when systemd gave us a Unix socket
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What waits in the kernel can no longer be replaced by newer progress.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)
        self._stream: trio.SocketStream | None = None
        self.send: Callable[[bytes], int] = sock.send  # for the outbox: writes at once what there is room for
        self.unread = b""
        self.peer = peer
        self.began = trio.current_time()
        self.upgrade: HandshakeRequest | None = None
        self.topics = ""  # what it watched, for the log
        self.fate = ABANDONED  # as far as it is known
        self.idle = False

    @property
    def stream(self) -> trio.SocketStream:
        """Made when it is first needed."""
        if self._stream is None:
            self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.socket))
        return self._stream

    async def wait_writable(self) -> None:
        """Wait until `send` has room. Raises ClosedResourceError."""
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self.socket)

    def gone(self) -> bool:
        """Whether the peer has said that nothing more comes, or has reset, be it behind bytes that are still unread."""
        if self.socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)  # and for what is always told: POLLHUP and POLLERR
        return bool(poll.poll(0))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, those pushed back first; b"" at the end."""
        if self.unread:
            await trio.lowlevel.checkpoint()
            size = max_bytes or len(self.unread)
            data, self.unread = self.unread[:size], self.unread[size:]
            return data
        # Like SocketStream.receive_some, without the generators and frames that wait with it: 1.1 KiB a connection.
        while True:
            if self.socket.fileno() < 0:  # closed under us, since the peer read nothing
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(max_bytes or MAX_RECEIVE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def read_head(self, most: int) -> bytes:
        """Read on until `unread` holds a whole request head, or what is and becomes none, or the end; returns it.

        One of more bytes than `most` becomes none: the HTTP side refuses it. An empty line before the head
        is ignored (RFC 9112 §2.2).
        """
        while b"\r\n\r\n" not in self.unread and len(self.unread) < most and not self.unread.startswith(TLS_HELLO):
            unread, self.unread = self.unread, b""
            data = await self.receive_some(min(4096, most - len(unread)))
            self.unread = unread + data
            if not data:
                break
        self.unread = self.unread.removeprefix(b"\r\n")
        return self.unread

    def wants_websocket(self, base: BasePath) -> bool:
        """Whether `unread` begins with a good WebSocket handshake; what is wrong with others, the HTTP side says."""
        head = base.inside_head(self.unread)
        if head.startswith(PREFIX):
            self.unread = head
        self.upgrade = read_handshake_request(self.unread)
        return self.upgrade is not None

    def close(self) -> None:
        """Close the socket at once."""
        self.socket.close()

    async def linger(self) -> None:
        """Say that nothing more comes, and let the peer read it: a close with bytes unread would cut it off (RST)."""
        with trio.move_on_after(LINGER):
            await self.end()
            while not self.idle and await self.receive_some():
                pass

    async def end(self) -> None:
        """Say that nothing more comes. Raises BrokenResourceError."""
        await trio.lowlevel.checkpoint()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError from error


Encrypted = Callable[[socket.socket, str, Start], Connection]


class HttpSide(Protocol):
    """What speaks HTTP."""

    async def serve(self, connection: Connection) -> bool:
        """Serve requests until the connection is done. True: an upgrade came, and its head is unread."""


def read_handshake_request(head: bytes) -> HandshakeRequest | None:
    """The WebSocket handshake that a request head is, or None."""
    size = head.find(b"\r\n\r\n") + 4
    head = head[:size]
    first = head.partition(b"\r\n")[0]
    target = first.removeprefix(b"GET ").partition(b" ")[0].partition(b"?")[0]
    if (
        not first.startswith(PREFIX)
        or not first.endswith(b" HTTP/1.1")
        or not (target == b"/ws" or target.startswith(b"/ws/"))
        or b"#" in first
        or head.count(b"\n") != head.count(b"\r\n")  # where the head may end sooner for wsproto than here
    ):
        return None
    protocol = WSConnection(ConnectionType.SERVER)
    try:
        protocol.receive_data(head)
        [request] = protocol.events()
        if not isinstance(request, Request):
            return None
        host = request.host.encode("idna").decode()  # which wsproto has decoded
    except (ProtocolError, UnicodeError, ValueError):  # what is no handshake makes no event
        return None
    names = {name for name, _ in request.extra_headers}
    if not names.isdisjoint((b"content-length", b"transfer-encoding")):
        return None
    return HandshakeRequest(protocol, request, size, host)


class Listener:
    """Serves connections of listening sockets until cancelled; those it has accepted run in `connections`."""

    def __init__(
        self,
        websocket: Callable[[Connection], Awaitable[None]],
        http: HttpSide,
        connections: trio.Nursery,
        limits: Limits,
        connection_log: ConnectionLog,
        encrypted: Encrypted | None = None,
        base: BasePath = ROOT,
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._connection_log = connection_log
        self._encrypted = encrypted
        self._base = base
        self._websocket = websocket
        self._http = http
        self._connections = connections
        self._limits = limits
        self._trusted_proxies = trusted_proxies
        self._handshake_limiter = HandshakeLimiter()  # for handshakes
        self._of_address: Counter[str] = Counter()
        self._draining = False
        self._heads: dict[trio.CancelScope, Connection] = {}  # whose first request is still to come, oldest first

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._limits = settings.limits
        self._trusted_proxies = settings.server.trusted_proxies

    def encrypt(self, encrypted: Encrypted | None) -> None:
        """From here on new connections are made by this; those there are stay."""
        self._encrypted = encrypted

    async def run(self, listening: socket.socket) -> None:
        """Accept until cancelled. The socket is non-blocking and stays open."""
        await accept_forever(listening, self._accept)

    def stop(self, listening: ListeningSocket) -> None:
        """Serve the connections that wait, and close the port, so that later ones are refused at once.

        A port of systemd's stays as it is: what waits there is for the next daemon.
        """
        if not listening.lasting:
            with contextlib.suppress(OSError):
                for sock, peer in accept_waiting(listening, BACKLOG):
                    self._accept(sock, peer)
            listening.close()

    async def drain(self) -> None:
        """Close the connections that ask for nothing, as browsers open them in advance; a request may be on its way."""
        self._draining = True
        for head in self._heads:
            head.deadline = min(head.deadline, trio.current_time() + REQUEST_GRACE)
        if self._heads:
            await trio.sleep(REQUEST_GRACE)

    def _accept(self, sock: socket.socket, peer: str) -> None:
        self._connections.start_soon(self._accepted, sock, peer)

    async def _accepted(self, sock: socket.socket, peer: str) -> None:
        """The boundary of one connection: nothing gets past it but a cancellation from without."""
        connection = Connection(sock, peer)
        failed: BaseException | None = None
        counted = counted_as(peer)
        self._of_address[counted] += 1
        self._connection_log.opened()
        try:
            try:
                if self._encrypted is None:
                    await self._serve(connection)
                else:
                    async with trio.open_nursery() as flushing:
                        connection = self._encrypted(sock, peer, flushing.start_soon)
                        await self._serve(connection)
                        flushing.cancel_scope.cancel()
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the peer has gone, which is its right
            except* trio.Cancelled as group:
                if trio.current_effective_deadline() == -math.inf:
                    raise
                failed = group.exceptions[0]  # a scope inside has let it out, and it would end all connections
            except* Exception as group:
                failed = group.exceptions[0]
            finally:
                self._connection_log.ended(connection, failed)
        except* Exception as group:
            log.error("the end of a connection cannot be told", peer=peer, exc_info=group)
        finally:
            self._of_address[counted] -= 1
            if not self._of_address[counted]:
                del self._of_address[counted]
            connection.close()

    async def _serve(self, connection: Connection) -> None:
        if await self._asks_for_websocket(connection):
            await self._websocket(connection)
        if connection.fate not in (CROWDED_OUT, TOO_MANY_OF_ADDRESS):  # who have been told nothing
            await connection.linger()

    def _make_room(self) -> None:
        """Send away who has had most time to ask: so the silent, however many, keep nobody out who asks at once."""
        while len(self._heads) >= self._limits.max_handshakes:
            head, connection = next(iter(self._heads.items()))
            del self._heads[head]
            connection.fate = CROWDED_OUT
            head.cancel()

    async def _asks_for_websocket(self, connection: Connection) -> bool:
        """Or else it is done with."""
        limits, address = self._limits, connection.peer
        # what a proxy forwards is of many clients, each of whom has its places, uploads and requests counted
        exempt = networks(limits.exempt_addresses + self._trusted_proxies)
        if self._of_address[counted_as(address)] > limits.max_sockets_per_address and not within(address, exempt):
            connection.fate = TOO_MANY_OF_ADDRESS
            return False
        self._make_room()
        with trio.move_on_after(REQUEST_GRACE if self._draining else limits.handshake_timeout) as head:
            self._heads[head] = connection
            try:
                await connection.read_head(limits.max_request_header_bytes)
            finally:
                self._heads.pop(head, None)
        if head.cancelled_caught or not connection.unread:
            if head.cancelled_caught and not self._draining and connection.fate is ABANDONED:
                connection.fate = SILENT
            return False
        connection.fate = TLS_TO_PLAIN if connection.unread.startswith(TLS_HELLO) else SERVED
        if self._base.inside_head(connection.unread).startswith(PREFIX):
            await self._handshake_limiter.pass_through()
        return connection.wants_websocket(self._base) or await self._http.serve(connection)
