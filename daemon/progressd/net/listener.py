"""The one port: accept connections, read each request head, and route the connection to WebSocket or HTTP.

A valid WebSocket handshake goes to the WebSocket server, any other request to the HTTP server. If a later request on an
HTTP connection asks for an upgrade, the HTTP server hands the connection back to the listener. A failure closes only
its own connection.
"""

import contextlib
import select
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import structlog
import trio

from progressd.auth.limits import address_group, within
from progressd.config.settings import Limits, Settings
from progressd.net.connection import Connection, SocketTransport, close_socket
from progressd.net.connection_log import (
    HANDSHAKE_TIMEOUT,
    SERVED,
    TOO_MANY_HANDSHAKES,
    TOO_MANY_SOCKETS,
    ConnectionLog,
    LogEntry,
)
from progressd.net.handshake import PREFIX
from progressd.net.request import AT_ROOT, BasePath
from progressd.net.tls import TLSTransport
from progressd.system.event_loop_limiter import EventLoopLimiter

BACKLOG: Final = 4096  # connections waiting to be accepted; the kernel limits them to net.core.somaxconn
RETRY_INTERVAL: Final = 0.1  # seconds
ACCEPT_BATCH: Final = 16  # connections in one pass of the event loop, 1 ms
MAX_UNSENT: Final = 16 * 1024  # maximum bytes queued in the kernel, where newer progress cannot replace them
REQUEST_GRACE: Final = 0.3  # seconds for a request to arrive after the daemon begins to stop
# In one pass of the event loop. A thousand WebSocket handshakes in one pass would take 200 ms, and a message needs
# about six passes to reach its watchers.
WEBSOCKET_HANDSHAKES: Final = 6  # 1.5 ms
WEBSOCKET_HANDSHAKES_AFTER_LONG_PASS: Final = 32
TLS_HANDSHAKES: Final = 1  # 6 ms with RSA and 4096 bits, 1 ms with 2048

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
        except OSError as error:  # no free descriptor, or the connection failed before the accept: accept(2)
            if not warned:
                log.warning("cannot accept connections for now", error=str(error))
            warned = True
            await trio.sleep(RETRY_INTERVAL)


class Listener:
    """Serve the connections of listening sockets, in the nursery `connections`.

    Args:
        websocket: takes the handshake of a connection and serves it.
        http: serves a connection; returns True if a WebSocket handshake arrived.
        tls: None for a port without TLS.
    """

    def __init__(
        self,
        websocket: Callable[[Connection], Awaitable[None]],
        http: Callable[[Connection], Awaitable[bool]],
        connections: trio.Nursery,
        limits: Limits,
        connection_log: ConnectionLog,
        *,
        tls: ssl.SSLContext | None = None,
        base: BasePath = AT_ROOT,
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._websocket = websocket
        self._http = http
        self._connections = connections
        self._limits = limits
        self._connection_log = connection_log
        self._tls = tls
        self._base = base
        self._trusted_proxies = trusted_proxies
        self._websocket_handshakes = EventLoopLimiter(WEBSOCKET_HANDSHAKES, WEBSOCKET_HANDSHAKES_AFTER_LONG_PASS)
        self._tls_handshakes = EventLoopLimiter(TLS_HANDSHAKES)
        self._sockets: Counter[str] = Counter()  # open sockets by address
        self._draining = False
        self._heads: dict[Connection, trio.CancelScope] = {}  # connections without a whole head, oldest first

    def apply_settings(self, settings: Settings, tls: ssl.SSLContext | None) -> None:
        """Apply reloaded settings to new connections."""
        self._limits = settings.limits
        self._trusted_proxies = settings.server.trusted_proxies
        self._tls = tls
        if tls is not None:
            log.info("certificate reloaded", tls_cert=settings.server.tls_cert)

    async def run(self, listening: socket.socket) -> None:
        """Accept connections until cancelled. The socket is non-blocking and stays open."""
        with contextlib.suppress(OSError):  # a Unix socket from systemd has no TCP options
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit both
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)
        await accept_forever(listening, self._accept)

    def stop(self, listening: ListeningSocket) -> None:
        """Accept the waiting connections, and close the port. The kernel refuses later connections.

        A port that systemd holds stays open: the next daemon accepts the waiting connections.
        """
        if not listening.held_by_systemd:
            with contextlib.suppress(OSError):
                for sock, address in accept_waiting(listening, BACKLOG):
                    self._accept(sock, address)
            listening.close()

    async def drain(self) -> None:
        """Close connections without a request after a short grace period. Browsers open some in advance."""
        self._draining = True
        for timeout in self._heads.values():
            timeout.deadline = min(timeout.deadline, trio.current_time() + REQUEST_GRACE)
        if self._heads:
            await trio.sleep(REQUEST_GRACE)

    def _accept(self, sock: socket.socket, address: str) -> None:
        self._connections.start_soon(self._accepted, sock, address)

    async def _accepted(self, sock: socket.socket, address: str) -> None:
        """Serve one connection. A failure is logged, and ends no other connection."""
        entry = self._connection_log.add(address)
        counted = address_group(address)
        self._sockets[counted] += 1
        failure: BaseException | None = None
        try:
            await self._open(sock, address, entry)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer disconnected
        except* Exception as group:
            failure = group.exceptions[0]
        finally:
            close_socket(sock)
            self._sockets[counted] -= 1
            if not self._sockets[counted]:
                del self._sockets[counted]
            self._connection_log.finish(entry, failure)

    async def _open(self, sock: socket.socket, address: str, entry: LogEntry) -> None:
        if self._tls is None:
            await self._serve(Connection(SocketTransport(sock), address, entry))
        else:
            async with trio.open_nursery() as nursery:
                transport = TLSTransport(sock, self._tls, nursery.start_soon, self._tls_handshakes)
                await self._serve(Connection(transport, address, entry))
                nursery.cancel_scope.cancel()

    async def _serve(self, connection: Connection) -> None:
        if self._admit(connection):
            if await self._read_head(connection) and await self._route(connection):
                await self._websocket(connection)
            await connection.shut_down()

    def _admit(self, connection: Connection) -> bool:
        """Return whether the connection is within the limits. It may replace the oldest one without a request."""
        limits = self._limits
        # A proxy has many clients. Their connections, uploads and requests are counted per client.
        exempt = limits.exempt_addresses + self._trusted_proxies
        address = connection.address
        if self._sockets[address_group(address)] > limits.max_sockets_per_address and not within(address, exempt):
            connection.log_entry.outcome = TOO_MANY_SOCKETS
            return False
        while len(self._heads) >= limits.max_handshakes:  # idle connections must not block active clients
            oldest = next(iter(self._heads))
            del self._heads[oldest]
            oldest.log_entry.outcome = TOO_MANY_HANDSHAKES
            oldest.close()
        return True

    async def _read_head(self, connection: Connection) -> bool:
        """Return whether a request head arrived in time."""
        limits = self._limits
        if connection.read_head_nowait(limits.max_request_header_bytes):  # the usual case while many connect
            return True
        with trio.move_on_after(REQUEST_GRACE if self._draining else limits.handshake_timeout) as timeout:
            self._heads[connection] = timeout
            try:
                await connection.read_head(limits.max_request_header_bytes)
            finally:
                self._heads.pop(connection, None)
        if timeout.cancelled_caught:
            if not self._draining:
                connection.log_entry.outcome = HANDSHAKE_TIMEOUT
            return False
        return connection.unread != b""

    async def _route(self, connection: Connection) -> bool:
        """Return whether the connection is for the WebSocket server, immediately or after HTTP requests."""
        connection.log_entry.outcome = SERVED
        if self._base.strip_head(connection.unread).startswith(PREFIX):
            await self._websocket_handshakes.pass_through(1)
        return connection.wants_websocket(self._base) or await self._http(connection)
