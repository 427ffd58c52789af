"""The HTTP server: an ASGI application on Hypercorn, over connections that the listener accepts.

Checked with Hypercorn 0.17.3 and 0.18.0, whose `WorkerContext` and `Lifespan` this uses.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from hypercorn.utils import wrap_app

from progressd.broadcast.backlog import MemoryBudget
from progressd.config.settings import Settings
from progressd.http.asgi import with_slash
from progressd.http.middleware.fast_job_read import FastJobReads
from progressd.http.server.connection import HTTPConnection
from progressd.http.server.protocol import ServerContext
from progressd.net.connection import PREFIX, Connection
from progressd.net.request import ALWAYS, BasePath

MAX_BODY: Final = 2**63  # Hypercorn's own limit is for WSGI


class HTTPServer:
    """Serve HTTP connections with an ASGI application. `fast_reads` answers some requests without it.

    budget: counts the bytes of unread responses.
    """

    def __init__(self, app: ASGIFramework, fast_reads: FastJobReads, base: BasePath, settings: Settings) -> None:
        self.budget = MemoryBudget()
        self.fast_reads = fast_reads
        self._base = base
        self._config = _Config()
        self._config.include_server_header = False
        self._config.accesslog = None
        self._config.errorlog = logging.getLogger("hypercorn.error")  # by default Hypercorn writes to stderr
        self._app = wrap_app(_finish_responses(with_slash(app, base)), MAX_BODY, "asgi")
        self._worker = WorkerContext(None)
        self._state: dict[str, Any] = {}
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
            self._state,
            self.fast_reads,
            self._base,
            {PREFIX, PREFIX.replace(b"/", self._base.url("/").encode())},
            limits,
            self.budget,
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run the application's startup and shutdown around the block."""
        lifespan = Lifespan(self._app, self._config, self._state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            yield
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()

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


class _Config(Config):
    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the headers of all responses, including Hypercorn's own."""
        return [*super().response_headers(protocol), *ALWAYS]


def _finish_responses(app: ASGIFramework) -> ASGIFramework:
    """Shield the last send of a response from a cancellation by the application.

    Quart-Trio cancels a request on a disconnect. Hypercorn reports the disconnect before that send has finished, so an
    idle connection would never be closed.
    """

    async def finishing(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def shielded(message: ASGISendEvent) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            with trio.CancelScope(shield=last):
                await send(message)

        await app(scope, receive, shielded)

    return finishing
