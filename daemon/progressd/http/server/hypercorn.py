"""The seam to Hypercorn: serves a connection that we accepted with its Trio `TCPServer`, and mends what is wrong there.

Checked with Hypercorn 0.17.3 and 0.18.0, whose internals this uses: `TCPServer`, `H11Protocol`, `WorkerContext`,
`Lifespan`.
"""

import logging
from collections.abc import AsyncGenerator
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

from progressd.broadcast.memory_budget import MemoryBudget
from progressd.config.settings import Settings
from progressd.http.asgi import with_slash
from progressd.http.middleware.fast_job_read import FastJobReads
from progressd.http.server.protocol import Protocol
from progressd.http.server.stream import HttpStream
from progressd.net.base_path import BasePath
from progressd.net.headers import ALWAYS
from progressd.net.listener import PREFIX, REQUEST_GRACE, Connection

MAX_RECEIVE: Final = 65536  # bytes read at once
KEEP_ALIVE: Final = 75.0  # seconds an idle connection is kept, as nginx does
MAX_BODY: Final = 2**63  # Hypercorn's own limit is for WSGI


class HttpServer:
    """Serves HTTP connections with an ASGI application, and some reads ahead of it."""

    def __init__(self, app: ASGIFramework, direct: FastJobReads, base: BasePath, settings: Settings) -> None:
        self.budget = MemoryBudget()  # of the answers that wait for clients to read them
        self.direct = direct
        self._base = base
        self._beginnings = {PREFIX, PREFIX.replace(b"/", base.url("/").encode())}  # of an upgrade
        self._config = _Config()
        self._config.keep_alive_timeout = KEEP_ALIVE
        self._config.include_server_header = False
        self._config.accesslog = None
        self._config.errorlog = logging.getLogger("hypercorn.error")  # else it writes tracebacks to stderr by itself
        self._app = wrap_app(_finishing(with_slash(app, base)), MAX_BODY, "asgi")
        self._context = WorkerContext(None)
        self._state: dict[str, Any] = {}
        self._open: set[Connection] = set()
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._limits = settings.limits
        self.budget.limit = settings.limits.send_buffer_bytes_total
        # the listener hands over so many bytes of a longer head
        self._config.h11_max_incomplete_size = settings.limits.max_request_header_bytes - 1

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
        stream = HttpStream(connection, self._base, self._beginnings, self._limits, self.budget)
        self._open.add(connection)
        try:
            server = _Server(
                self._app,
                self._config,
                self._context,
                ConnectionState(self._state.copy()),
                cast("trio.SSLStream[trio.SocketStream]", stream),  # it asks for no more of a stream than ours has
            )
            server.connection, server.base, server.direct = connection, self._base, self.direct
            await server.run()
        finally:
            self._open.discard(connection)
            vars(server).clear()  # the server, the stream and the protocol refer to one another
        return stream.upgrading

    async def drain(self) -> None:
        """Close idle connections now and the others after their response.

        A request may be on its way: it has `REQUEST_GRACE` seconds to come in, and is answered.
        """
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

    connection: Connection
    base: BasePath
    direct: FastJobReads
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
            self._stream.set_between_requests(event.idle)
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
        connection = self.connection
        protocol.direct, protocol.send_now, protocol.on_answer = self.direct, connection.send, self._on_answer
        protocol.gone, protocol.give_up, protocol.base = connection.gone, self._give_up, self.base
        self.protocol = cast(ProtocolWrapper, protocol)  # which would choose between protocols
        self._stream.protocol = protocol
        while True:
            try:
                data = await self.stream.receive_some(MAX_RECEIVE)
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

    @property
    def _stream(self) -> HttpStream:
        return cast("HttpStream", self.stream)

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
        if left > 0:
            await trio.sleep(REQUEST_GRACE)
        if self._stream.is_between_requests:  # else one has come just now, and is about to cancel this
            self.connection.idle = True
            with trio.CancelScope(shield=True):
                await self._initiate_server_close()


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
