"""The HTTP server: the application on Hypercorn, over connections that the listener accepts.

Checked with Hypercorn 0.17.3 and 0.18.0, whose `WorkerContext` and `TaskGroup` this uses. The application receives no
lifespan events, because it has no tasks of its own.
"""

import logging
import math
from typing import Final, cast

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from hypercorn.typing import Scope as ASGIScope
from hypercorn.utils import wrap_app

from progressd.broadcast.outbox import MemoryBudget
from progressd.config.settings import Settings
from progressd.http.middleware import AccessMiddleware
from progressd.http.server.protocol import MAX_SEND, Protocol, ServerContext
from progressd.net.connection import LINGER_TIMEOUT, Connection
from progressd.net.connection_log import UNREAD
from progressd.net.handshake import PREFIX
from progressd.net.listener import REQUEST_GRACE
from progressd.net.request import ALWAYS, BasePath

KEEP_ALIVE_TIMEOUT: Final = 75.0  # seconds until an idle connection is closed, as in nginx
MAX_RECEIVE: Final = 65536  # bytes in one read
UPGRADE_GRACE: Final = 1.0  # seconds to wait for the end of a response, if an upgrade immediately follows its request
MAX_BODY: Final = 2**63  # Hypercorn's own limit is for WSGI


class HTTPServer:
    """Serve HTTP connections. `budget` counts the bytes of unread responses."""

    def __init__(self, access: AccessMiddleware, base: BasePath, settings: Settings) -> None:
        self.budget = MemoryBudget()
        self._access = access
        self._base = base
        self._config = _Config()
        self._config.include_server_header = False
        self._config.accesslog = None
        self._config.errorlog = logging.getLogger("hypercorn.error")  # by default Hypercorn writes to stderr
        self._app = wrap_app(_finish_responses(access), MAX_BODY, "asgi")
        self._worker = WorkerContext(None)
        self._open: set[HTTPConnection] = set()
        self.apply_settings(settings)

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings. Most apply to new connections only."""
        limits = settings.limits
        self.budget.limit = limits.send_buffer_bytes_total
        # The listener passes on this many bytes of a longer head, which h11 then rejects.
        self._config.h11_max_incomplete_size = limits.max_request_header_bytes - 1
        self._context = ServerContext(
            self._app,
            self._config,
            self._worker,
            self._access,
            self._base,
            {PREFIX, PREFIX.replace(b"/", self._base.url("/").encode())},
            limits,
            self.budget,
        )

    async def serve(self, connection: Connection) -> bool:
        """Serve requests until the connection ends. Return whether to pass it to the WebSocket server."""
        http = HTTPConnection(connection, self._context)
        self._open.add(http)
        try:
            return await http.serve()
        finally:
            self._open.discard(http)

    async def drain(self) -> None:
        """Close idle connections after `REQUEST_GRACE` seconds, and busy connections after their response."""
        await self._worker.terminated.set()
        for http in self._open:
            http.drain()

    def abort(self) -> None:
        """Close all connections at once."""
        for http in self._open:
            http.abort()


class HTTPConnection:
    """Serve requests until the connection ends, or until an upgrade to WebSocket arrives between two requests.

    Proxies send such an upgrade over an idle connection that they have used for requests.
    """

    def __init__(self, connection: Connection, context: ServerContext) -> None:
        self._connection = connection
        self._context = context
        self._protocol: Protocol
        self._closed = False  # no further reads or writes here
        self._upgraded = False
        self._gave_up = False
        self._idle = True  # between requests
        self._idle_since = trio.current_time()
        self._keep_alive = REQUEST_GRACE if context.worker.terminated.is_set() else KEEP_ALIVE_TIMEOUT
        self._head_deadline = math.inf  # deadline of a request head that has begun
        self._requests = 0  # number of requests before that head
        self._unread = 0  # bytes sent since the socket had room
        self._send_lock = trio.Lock()
        self._serving = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._sending = trio.CancelScope()

    async def serve(self) -> bool:
        """Serve requests. Return whether to pass the connection to the WebSocket server."""
        try:
            # Hypercorn's TaskGroup lets its own cancellation escape, which would end all connections.
            with self._serving:
                async with TaskGroup() as tasks:
                    self._protocol = Protocol(
                        self._context,
                        self._connection,
                        tasks,
                        send=self._handle,
                        on_fast_response=self._restart_keep_alive,
                        cancel=self._serving.cancel,
                    )
                    await self._read()
        finally:
            self._closed = True
            vars(self).pop("_protocol", None)  # the protocol and this object refer to each other
        return self._upgraded

    def drain(self) -> None:
        """Close the connection once it is idle. A request that is arriving still gets a response."""
        self._keep_alive = REQUEST_GRACE
        self._idle_since = trio.current_time()
        self._reading.deadline = min(self._reading.deadline, self._idle_deadline())

    def abort(self) -> None:
        """Close the socket at once. Hypercorn shields its sends, so a cancellation alone would wait for the client."""
        self._connection.close()

    def give_up(self) -> None:
        """Close a connection whose client does not read the response."""
        self._gave_up = True
        self._connection.log_entry.outcome = UNREAD
        self._connection.close()

    async def _handle(self, event: Event) -> None:
        """Handle an event from Hypercorn's protocol."""
        if isinstance(event, RawData):
            async with self._send_lock:
                try:
                    with trio.CancelScope(shield=True):
                        await self._send(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._protocol.handle(Closed())
        elif isinstance(event, Closed):
            self._close()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._idle = event.idle
            if event.idle:
                self._restart_keep_alive()
                self._reading.deadline = self._read_deadline()

    def _close(self) -> None:
        self._closed = True
        self._reading.cancel()

    # reading

    async def _read(self) -> None:
        while (data := await self._receive()) is not None:
            await self._protocol.handle(RawData(data))
            if not data:
                await self._protocol.finish()
                break
        await self._protocol.handle(Closed())

    async def _receive(self) -> bytes | None:
        """Return the next bytes for the protocol, b"" at the end, or None if the connection is to be closed."""
        if self._closed:
            return None
        data = b""
        try:
            with trio.CancelScope(deadline=self._read_deadline()) as self._reading:
                data = await self._connection.receive_some(MAX_RECEIVE)
                if self._protocol.takes_lines:  # such clients often send all lines before they read an answer
                    self._sending.deadline = trio.current_time() + self._context.limits.idle_timeout
                head = data.removeprefix(b"\r\n")  # an empty line before a request is ignored
                if head and any(head[: len(one)] == one[: len(head)] for one in self._context.upgrade_prefixes):
                    data = await self._check_upgrade(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        if self._reading.cancelled_caught and self._idle and not self._closed and not self._protocol.has_begun():
            with trio.move_on_after(LINGER_TIMEOUT):  # the client has read everything: do not wait for its end
                await self._connection.transport.send_eof()
            self._connection.close()
        return None if self._closed or self._reading.cancelled_caught else data

    def _read_deadline(self) -> float:
        """Return the deadline for reading. A request head has one time limit for all its reads."""
        protocol = self._protocol
        if protocol.requests != self._requests or not protocol.in_head():
            self._requests, self._head_deadline = protocol.requests, math.inf
        if protocol.in_head():
            self._head_deadline = min(self._head_deadline, self._new_head_deadline())
        return min(self._head_deadline, self._idle_deadline())

    def _new_head_deadline(self) -> float:
        return trio.current_time() + self._context.limits.handshake_timeout

    def _idle_deadline(self) -> float:
        return self._idle_since + self._keep_alive if self._idle else math.inf

    def _restart_keep_alive(self) -> None:
        self._idle_since = trio.current_time()

    async def _check_upgrade(self, data: bytes) -> bytes:
        """If the data starts like an upgrade, read the rest of its head. Return the data unless it is an upgrade."""
        connection = self._connection
        with trio.move_on_after(UPGRADE_GRACE):  # the last bytes of the previous response may be in flight
            await self._protocol.wait_finished()
        if not self._idle or self._protocol.has_begun():
            return data
        connection.push_back(data)
        self._reading.deadline = self._new_head_deadline()
        await connection.read_head(self._context.limits.max_request_header_bytes)
        if connection.wants_websocket(self._context.base):
            self._upgraded = self._closed = True
            return b""
        return await connection.receive_some()

    # writing

    async def _send(self, data: bytes) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        rest = memoryview(data)
        try:
            while rest and not self._gave_up:
                if self._unread >= MAX_SEND:
                    await self._wait_for_room(len(data))
                    continue
                try:
                    sent = self._connection.transport.send(cast(bytes, rest[:MAX_SEND]))
                except BlockingIOError:
                    self._unread = MAX_SEND
                else:
                    self._unread += sent
                    rest = rest[sent:]
        except OSError as error:
            raise trio.BrokenResourceError from error
        if self._gave_up:
            raise trio.BrokenResourceError("the client does not read")
        await trio.lowlevel.checkpoint()

    async def _wait_for_room(self, size: int) -> None:
        """Wait until the client has read most of the sent data, or give it up. Meanwhile `size` bytes stay in memory.

        The kernel would accept megabytes at once, and a slow client would have to read all of them before the timeout.
        """
        budget = self._context.budget
        budget.hold(self, size)
        try:
            if not self._gave_up:
                with trio.move_on_after(self._context.limits.idle_timeout) as self._sending:
                    await self._connection.transport.wait_writable()
                    self._unread = 0
                if self._sending.cancelled_caught:
                    self.give_up()
        finally:
            budget.hold(self, 0)


class _Config(Config):
    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the headers of all responses, including Hypercorn's own."""
        return [*super().response_headers(protocol), *ALWAYS]


def _finish_responses(app: ASGIFramework) -> ASGIFramework:
    """Shield the last send of a response from a cancellation by the application.

    Quart-Trio cancels a request on a disconnect. Hypercorn reports the disconnect before that send has finished, so an
    idle connection would never be closed.
    """

    async def finishing(scope: ASGIScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def shielded(message: ASGISendEvent) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            with trio.CancelScope(shield=last):
                await send(message)

        await app(scope, receive, shielded)

    return finishing
