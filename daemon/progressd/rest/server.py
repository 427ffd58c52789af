"""The seam to Hypercorn: serves a connection that we accepted with its Trio `TCPServer`, and mends what is wrong there.

Checked with Hypercorn 0.17.3 and 0.18.0, whose internals this uses: `TCPServer`, `H11Protocol`, `WorkerContext`,
`Lifespan`.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as ServerEvent
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    Scope,
)
from hypercorn.utils import wrap_app

from progressd.broadcast.outbox import Budget
from progressd.config import Settings
from progressd.core.base_path import BasePath
from progressd.core.headers import ALWAYS
from progressd.rest.at_once import with_slash
from progressd.rest.direct import DirectReads
from progressd.rest.protocol import SEND_MOST, Protocol
from progressd.ws.ledger import UNREAD
from progressd.ws.listener import HEAD_MOST, PREFIX, Connection

RECEIVE_MOST: Final = 65536  # bytes read at once
KEEP_ALIVE: Final = 75.0  # seconds an idle connection is kept, as nginx does
WIND_UP: Final = 1.0  # seconds to wait for the end of a response when an upgrade follows it at once
MAX_BODY: Final = 2**63  # Hypercorn's own limit is for WSGI


class HttpServer:
    """Serves HTTP connections with an ASGI application, and some reads ahead of it."""

    def __init__(self, app: ASGIFramework, direct: DirectReads, base: BasePath, settings: Settings) -> None:
        self.budget = Budget()  # of the answers that wait for clients to read them
        self.use(settings)
        self.direct = direct
        self._base = base
        self._beginnings = {PREFIX, PREFIX.replace(b"/", base.url("/").encode())}  # of an upgrade
        self._config = _Config()
        self._config.keep_alive_timeout = KEEP_ALIVE
        self._config.include_server_header = False
        self._config.accesslog = None
        self._config.h11_max_incomplete_size = HEAD_MOST - 1  # the listener hands over so many bytes of a longer head
        self._config.errorlog = logging.getLogger("hypercorn.error")  # else it writes tracebacks to stderr by itself
        self._app = wrap_app(_finishing(with_slash(app, base)), MAX_BODY, "asgi")
        self._context = WorkerContext(None)
        self._state: dict[str, Any] = {}
        self._open: set[Connection] = set()

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._stall = settings.limits.stall_timeout
        self.budget.limit = settings.limits.outbox_bytes_total

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Within this, the application is started."""
        lifespan = Lifespan(self._app, self._config, self._state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            yield
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()

    async def serve(self, connection: Connection) -> bool:
        """Serve requests until the connection is done. True: an upgrade came, and its head is unread."""
        stream = _HttpStream(connection, self._base, self._beginnings, self._stall, self.budget)
        self._open.add(connection)
        try:
            server = _Server(
                self._app,
                self._config,
                self._context,
                ConnectionState(self._state.copy()),
                cast("trio.SSLStream[trio.SocketStream]", stream),  # it asks for no more of a stream than ours has
            )
            server.on_idle, server.base = stream.set_between_requests, self._base
            server.direct, server.send_now, server.gone = self.direct, connection.send, connection.gone
            await server.run()
        finally:
            self._open.discard(connection)
        return stream.upgrading

    async def drain(self) -> None:
        """Close idle connections now and the others after their response."""
        await self._context.terminated.set()

    def abort(self) -> None:
        """Close every connection, also under a response that its client does not read.

        Hypercorn shields its sends without a timeout, so that a cancellation alone would wait forever.
        """
        for connection in self._open:
            connection.stream.socket.close()


class _Config(Config):
    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """What every answer gets, also Hypercorn's own."""
        return [*super().response_headers(protocol), *ALWAYS]


class _Server(TCPServer):
    """Hypercorn's server of one connection, with our protocol, and with an end when the client has gone."""

    on_idle: Callable[[bool], None]
    base: BasePath
    direct: DirectReads
    send_now: Callable[[bytes], int]
    gone: Callable[[], bool]
    _idle_since: float
    _over = False

    async def run(self) -> None:
        self._asked = trio.Event()  # the first request, which was read by the listener, is with the protocol
        # Around Hypercorn's nursery and not that one's own: its TaskGroup lets a cancellation of it pass on, and that
        # would end whatever is around, up to the daemon.
        with trio.CancelScope() as self._serving:
            await super().run()

    async def protocol_send(self, event: ServerEvent) -> None:
        if isinstance(event, Updated):
            self.on_idle(event.idle)
            if self._over:
                return  # Hypercorn would keep the connection until its timeout for idle ones
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        """As Hypercorn's, but with our protocol, and without its time-out for reading, which is for websockets."""
        chosen = self.protocol
        protocol = Protocol(
            chosen.app,
            chosen.config,
            chosen.context,
            chosen.task_group,
            chosen.state,
            chosen.ssl,
            chosen.client,
            chosen.server,
            chosen.send,
        )
        protocol.direct, protocol.send_now, protocol.on_answer = self.direct, self.send_now, self._on_answer
        protocol.gone, protocol.give_up, protocol.base = self.gone, self._give_up, self.base
        self.protocol = cast(ProtocolWrapper, protocol)  # which would choose between protocols
        cast("_HttpStream", self.stream).protocol = protocol
        while True:
            try:
                data = await self.stream.receive_some(RECEIVE_MOST)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            await protocol.handle(RawData(bytes(data)))
            self._asked.set()
            if not data:
                await protocol.finish()
                break
        await protocol.handle(Closed())
        self._over = True
        await self.idle_task.stop()

    def _give_up(self) -> None:
        self._serving.cancel()

    def _on_answer(self) -> None:
        self._idle_since = trio.current_time()

    async def _idle_timeout(self) -> None:
        """Hypercorn's own knows nothing of requests that were answered directly, and drops one that meets the drain."""
        await self._asked.wait()
        self._on_answer()
        terminated = self.context.terminated
        while (left := self._idle_since + KEEP_ALIVE - trio.current_time()) > 0 and not terminated.is_set():
            with trio.move_on_after(left):
                await terminated.wait()
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()


class _HttpStream(trio.abc.HalfCloseableStream):
    """What Hypercorn reads from and writes to. It ends where an upgrade to WebSocket comes between two requests.

    Proxies do that: they send the upgrade over an idle connection that has served plain requests before.
    """

    protocol: Protocol  # which gets what is read

    def __init__(
        self, connection: Connection, base: BasePath, beginnings: Collection[bytes], stall: float, budget: Budget
    ) -> None:
        """`stall`: the seconds that a client may take to make room for the next piece of a response."""
        self._connection = connection
        self._base = base
        self._beginnings = beginnings
        self._stall = stall
        self._budget = budget
        self._closed = False
        self._given_up = False
        self._untaken = 0  # bytes sent since the socket had room
        self._reading = trio.CancelScope()  # to wake the reader when the stream is closed
        self._sending = trio.CancelScope()
        self._between_requests = trio.Event()
        self._between_requests.set()
        self.socket = connection.stream.socket  # Hypercorn asks it for the addresses
        self.upgrading = False

    def set_between_requests(self, between: bool) -> None:
        """Hypercorn has answered a request, or has got one."""
        if between:
            self._between_requests.set()
        else:
            self._between_requests = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b""
        with trio.CancelScope() as self._reading:
            if not self._closed:
                data = await self._connection.receive_some(max_bytes)
            if self.protocol.takes_lines:  # many a client reads no answer before it has sent all lines
                self._sending.deadline = trio.current_time() + self._stall
            if data and any(data[: len(one)] == one[: len(data)] for one in self._beginnings):
                data = await self._upgrade_or(data)
        if self._closed:
            raise trio.ClosedResourceError
        return data

    async def _upgrade_or(self, data: bytes) -> bytes:
        """Data that begins like an upgrade: close this stream if it is one, else give back all that was read."""
        connection = self._connection
        with trio.move_on_after(WIND_UP):  # the response before it may not be quite over
            await self._between_requests.wait()
        if not self._between_requests.is_set() or self.protocol.has_begun():
            return data
        connection.unread = data + connection.unread
        await connection.read_head()
        if connection.wants_websocket(self._base):
            self.upgrading = self._closed = True
            return b""
        data, connection.unread = connection.unread, b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        rest = memoryview(data)
        try:
            while rest and not self._given_up:
                if self._untaken >= SEND_MOST:
                    self._budget.hold(self, len(data))
                    await self._wait_for_room()
                    continue
                try:
                    sent = self._connection.send(cast(bytes, rest[:SEND_MOST]))
                except BlockingIOError:
                    self._untaken = SEND_MOST
                else:
                    self._untaken += sent
                    rest = rest[sent:]
        except OSError as error:
            raise trio.BrokenResourceError from error
        finally:
            self._budget.hold(self, 0)
        if self._given_up:
            raise trio.BrokenResourceError("the client does not read")
        await trio.lowlevel.checkpoint()

    async def _wait_for_room(self) -> None:
        """Until the client has taken what was sent, but for little; or give it up.

        Without this the kernel would take megabytes at once, all of which a slow client had to read in time.
        """
        if not self._given_up:
            with trio.move_on_after(self._stall) as self._sending:
                await self._connection.wait_writable()
                self._untaken = 0
            if self._sending.cancelled_caught:
                self.give_up()

    def give_up(self) -> None:
        """Close the connection under an answer that its client does not read."""
        self._given_up = True
        self._connection.fate = UNREAD
        self._connection.stream.socket.close()

    async def wait_send_all_might_not_block(self) -> None:
        await self._connection.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Left to `Connection.linger`, for after an upgrade nothing must be closed."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End the HTTP side; the listener closes the connection, or upgrades it."""
        self._closed = True
        self._reading.cancel()
        await trio.lowlevel.checkpoint()


def _finishing(app: ASGIFramework) -> ASGIFramework:
    """Let the last send of a response finish even where the application cancels it.

    Quart-Trio cancels its request's nursery as soon as it hears of the disconnect that Hypercorn reports while it still
    winds up that send, and then idle connections are never closed.
    """

    async def finishing(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def shielded(message: ASGISendEvent) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            with trio.CancelScope(shield=last):
                await send(message)

        await app(scope, receive, shielded)

    return finishing
