"""The one port: accepts connections, reads each request head, and gives the connection to the side it belongs to.

`GET /ws…` with an upgrade goes to the WebSocket side with the bytes already read pushed back; anything else goes to
the HTTP side, which may hand the connection back for an upgrade between two requests. Whatever happens to one
connection ends that connection and nothing else.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.utilities import ProtocolError

from progressd.accepting import accept_forever
from progressd.config.settings import Limits
from progressd.ws.ledger import ABANDONED, CROWDED_OUT, SERVED, SILENT, Ledger

HEAD_MOST: Final = 16 * 1024  # bytes of a request head; more is refused by the HTTP side
RECEIVE_MOST: Final = 65536
PREFIX: Final = b"GET /ws"
LINGER: Final = 2.0  # seconds for a peer to read the last bytes before the socket is closed under it


class Connection:
    """An accepted socket, with the bytes that were read from it and not yet used.

    `socket` is the plain non-blocking socket and `stream` the Trio stream over that same socket.
    """

    __slots__ = ("began", "fate", "peer", "send", "socket", "stream", "topics", "unread")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.socket = sock
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self.send = sock.send  # for the outbox: writes at once what there is room for
        self.unread = b""
        self.peer = peer
        self.began = trio.current_time()
        self.topics = ""  # what it watched, for the log
        self.fate = ABANDONED  # as far as it is known

    async def wait_writable(self) -> None:
        """Wait until `send` has room."""
        await trio.lowlevel.wait_writable(self.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, those pushed back first; b"" at the end."""
        if self.unread:
            await trio.lowlevel.checkpoint()
            size = max_bytes or len(self.unread)
            data, self.unread = self.unread[:size], self.unread[size:]
            return data
        # Like SocketStream.receive_some, without the generators and frames that wait with it: 1.1 KiB a connection.
        while True:
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(max_bytes or RECEIVE_MOST)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def read_head(self) -> bytes:
        """Read on until `unread` holds a whole request head, or more than one may have, or the end; returns it."""
        while b"\r\n\r\n" not in self.unread and len(self.unread) < HEAD_MOST:
            data = bytes(await self.stream.receive_some(4096))
            if not data:
                break
            self.unread += data
        return self.unread

    async def linger(self) -> None:
        """Say that nothing more comes, and let the peer read it: a close with bytes unread would cut it off (RST)."""
        with trio.move_on_after(LINGER):
            await self.stream.send_eof()
            while await self.stream.receive_some():
                pass


class HttpSide(Protocol):
    """What speaks HTTP."""

    async def serve(self, connection: Connection) -> bool:
        """Serve requests until the connection is done. True: an upgrade came, and its head is unread."""


def wants_websocket(head: bytes) -> bool:
    """Whether a request head is a good WebSocket handshake; what is wrong with others, the HTTP side says."""
    first = head.partition(b"\r\n")[0]
    target = first.removeprefix(b"GET ").partition(b" ")[0].partition(b"?")[0]
    return (
        first.startswith(PREFIX)
        and first.endswith(b" HTTP/1.1")
        and (target == b"/ws" or target.startswith(b"/ws/"))
        and header(head, b"upgrade").lower() == b"websocket"
        and not header(head, b"content-length")
        and not header(head, b"transfer-encoding")
        and _is_handshake(head)
    )


def _is_handshake(head: bytes) -> bool:
    """A rehearsal: what wsproto does not accept, trio-websocket would answer without a body, or fail at."""
    rehearsal = WSConnection(ConnectionType.SERVER)
    try:
        rehearsal.receive_data(head)
    except (ProtocolError, UnicodeError):
        return False
    return any(rehearsal.events())


def header(head: bytes, name: bytes) -> bytes:
    """The value of a header in a request head, b"" if absent; `name` in lower case."""
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


class Listener:
    """Serves connections of listening sockets until cancelled; those it has accepted run in `connections`."""

    def __init__(
        self,
        websocket: Callable[[Connection], Awaitable[None]],
        http: HttpSide,
        connections: trio.Nursery,
        limits: Limits,
        ledger: Ledger,
    ) -> None:
        self._ledger = ledger
        self._websocket = websocket
        self._http = http
        self._connections = connections
        self._limits = limits
        self._heads: set[trio.CancelScope] = set()  # one for each connection whose first request is still to come

    def use(self, limits: Limits) -> None:
        """Limits that have been read again."""
        self._limits = limits

    async def run(self, listening: socket.socket) -> None:
        """Accept until cancelled. The socket is non-blocking and stays open."""
        await accept_forever(listening, lambda sock, peer: self._connections.start_soon(self._serve, sock, peer))

    def drain(self) -> None:
        """Close the connections that have asked for nothing yet, as browsers open them in advance."""
        for head in self._heads:
            head.cancel()

    async def _serve(self, sock: socket.socket, peer: str) -> None:
        """The boundary of one connection: nothing gets past it but a cancellation."""
        connection = Connection(sock, peer)
        failed: BaseException | None = None
        self._ledger.opened()
        try:
            await self._route(connection)
            await connection.linger()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer has gone, which is its right
        except* Exception as group:
            failed = group.exceptions[0]
        finally:
            self._ledger.ended(connection, failed)
            sock.close()

    async def _route(self, connection: Connection) -> None:
        if len(self._heads) >= self._limits.max_handshakes:
            connection.fate = CROWDED_OUT
            return
        with trio.move_on_after(self._limits.handshake_timeout) as head:
            self._heads.add(head)
            try:
                await connection.read_head()
            finally:
                self._heads.discard(head)
        if head.cancelled_caught or not connection.unread:
            connection.fate = SILENT if trio.current_time() >= head.deadline else ABANDONED
            return
        connection.fate = SERVED
        if wants_websocket(connection.unread) or await self._http.serve(connection):
            await self._websocket(connection)
