"""Every open WebSocket: who is let in, who is counted, and how they are told that the daemon stops."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import structlog
import trio
from trio_websocket import ConnectionClosed
from wsproto.utilities import LocalProtocolError

from progressd.auth.authenticator import Authenticator
from progressd.auth.client_address import client_address, networks
from progressd.auth.connection_limit import ConnectionLimiter
from progressd.auth.identity import ANONYMOUS, Client, Identity, Scope, require
from progressd.auth.origin import check_host, check_origin
from progressd.auth.rate_limit import RateLimiter
from progressd.broadcast.memory_budget import MemoryBudget
from progressd.broadcast.multiplex import Session
from progressd.broadcast.subscription import Subscription
from progressd.config.settings import Settings
from progressd.core.close_codes import CREDENTIALS_EXPIRED, CloseCode
from progressd.core.errors import ProgressdError, Stopping, TokenExpired, Unauthorized
from progressd.core.messages import Hello, Notice, Resync
from progressd.engine.access import ScopedServices, Scopes
from progressd.net.connection_log import VANISHED, refused
from progressd.net.listener import Connection
from progressd.producers.ndjson_stream import NDJSONReader
from progressd.ws.handshake import StreamRequest, check_query, publishes, read_stream_request
from progressd.ws.keepalive import KeepAlive
from progressd.ws.publish import PublishHandler
from progressd.ws.subscriptions import SubscriptionCommands
from progressd.ws.websocket import WebSocket

MAX_LOGGED_TOPICS: Final = 5  # of one connection, in the log

log = structlog.get_logger(__name__)


class WebSocketServer:
    """`handle` serves a connection that asks for a WebSocket, from its handshake to its close; `run` is their pulse."""

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        rate_limits: RateLimiter,
        connection_limiter: ConnectionLimiter,
        scopes: Scopes,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._rate_limits = rate_limits
        self._connection_limiter = connection_limiter
        self._scopes = scopes
        self._open: dict[WebSocket, Client] = {}  # in the order they came
        self.budget = MemoryBudget(settings.limits.send_buffer_bytes_total)
        self._heartbeat = KeepAlive(settings.limits)
        self.run = self._heartbeat.run
        self._turns = trio.Lock()  # of the clients with many topics
        self._announced: Notice | None = None
        self._draining: CloseCode | None = None

    def use(self, settings: Settings) -> None:
        """Settings that have been read again, most of them for who comes from now on; nobody is sent away."""
        self._settings = settings
        self._heartbeat.use(settings.limits)
        self.budget.limit = settings.limits.send_buffer_bytes_total

    def __len__(self) -> int:
        return len(self._open)

    async def handle(self, connection: Connection) -> None:
        """Serve the connection until it is closed, and note how it ended; the caller closes the socket."""
        connection.fate = VANISHED
        try:
            async with trio.open_nursery() as nursery:
                websocket = WebSocket(connection, nursery, self._settings.limits, self.budget, self._heartbeat)
                await self.ws_handler(websocket)
                nursery.cancel_scope.cancel()
        except* (ConnectionClosed, LocalProtocolError):
            # A client that goes at the wrong moment makes trio-websocket's own reader raise these: a ping after our
            # close, or an end in the middle of the handshake. It has left, and nothing is wrong.
            log.debug("watcher left in the middle", peer=connection.peer)

    async def ws_handler(self, websocket: WebSocket) -> None:
        """Let a client in and serve it until it is closed, or refuse it with a JSON body."""
        connection, headers = websocket.connection, websocket.headers
        connection.peer = client_address(connection.peer, headers, networks(self._settings.server.trusted_proxies))
        try:
            try:
                who = self._authenticator.authenticate(headers, websocket.target.partition("?")[2])
            except Unauthorized as error:
                self._check(websocket, ANONYMOUS)
                if isinstance(error, TokenExpired):
                    self._admit(websocket, ANONYMOUS)
                raise
            self._check(websocket, who)
            self._admit(websocket, who)
            serve = await self._asked(websocket, who)
            await websocket.accept()
            self._heartbeat.add(websocket.outbox)
        except TokenExpired:  # a page is told nothing of a refusal, and would come back for ever
            await websocket.accept()
            websocket.outbox.end(CREDENTIALS_EXPIRED)
            websocket.connection.fate = websocket.fate
            await websocket.serve()
        except ProgressdError as error:
            websocket.connection.fate = refused(error)
            await websocket.reject(error)
        else:
            if self._announced is not None:
                websocket.send(self._announced)
            if self._draining is not None:  # since it was let in
                websocket.outbox.end(self._draining)
            with self._authenticator.revocable(who, lambda: websocket.outbox.end(CREDENTIALS_EXPIRED)):
                await serve()
        finally:
            self._dismiss(websocket)
            self._heartbeat.remove(websocket.outbox)
            websocket.discard()

    def announce(self, message: Notice, *, later: bool = True) -> None:
        """Tell every watcher; `later`: also those who come from now on, until the next announcement."""
        self._announced = message if later else None
        for websocket in self._open:
            if websocket.accepted:
                websocket.send(message)

    async def close(self, closing: CloseCode, seconds: float) -> None:
        """Let nobody in any more, and close everyone, spread over some seconds lest all come back at once."""
        self._draining = closing
        watching = [websocket for websocket in self._open if websocket.accepted]
        for number, websocket in enumerate(watching):
            if number:
                await trio.sleep(seconds / (len(watching) - 1))
            websocket.outbox.end(closing)

    def _admit(self, websocket: WebSocket, who: Identity) -> None:
        """Count a connection in. Raises Unavailable where there is no room."""
        if self._draining is not None:
            raise Stopping("the daemon is stopping")
        client = Client(websocket.connection.peer, who, publishes(websocket.target))
        self._connection_limiter.require(client)
        self._connection_limiter.take(client)
        self._open[websocket] = client

    def _dismiss(self, websocket: WebSocket) -> None:
        if (client := self._open.pop(websocket, None)) is not None:
            self._connection_limiter.give_back(client)

    def _check(self, websocket: WebSocket, who: Identity) -> None:
        """Count the handshake, and check its Host and Origin. Raises RateLimited, Forbidden."""
        self._rate_limits.take(Client(websocket.connection.peer, who))
        server = self._settings.server
        check_host(websocket.host, server)
        check_origin(websocket.origin, websocket.host, server)

    async def _asked(self, websocket: WebSocket, who: Identity) -> Callable[[], Awaitable[None]]:
        """What the client is served with once it is let in. Raises what refuses it."""
        scope = self._scopes.of(who)
        if publishes(websocket.target):
            require(who, Scope.WRITE)
            check_query(websocket.target)
            lines = NDJSONReader(self._settings.ingest.max_line_bytes, scope.ingest)
            return PublishHandler(websocket, lines).serve
        require(who, Scope.READ)
        check_query(websocket.target)
        wish, after = await self._wish(websocket, scope)
        return partial(self._serve, websocket, scope, wish, after)

    async def _wish(self, websocket: WebSocket, scope: ScopedServices) -> tuple[StreamRequest, int | None]:
        """What the client will watch, and after which offset. Raises what refuses it."""
        wish = read_stream_request(websocket.target)
        if wish.topic is not None:
            await scope.history.require(wish.topic)
        if wish.since is None or wish.topic is None:
            return wish, None
        return wish, scope.history.offset(wish.since, self._scopes.broadcaster.offset)

    async def _serve(self, websocket: WebSocket, scope: ScopedServices, wish: StreamRequest, after: int | None) -> None:
        """Serve one stream, or the many topics that the client will name."""
        outbox = websocket.asked_for(wish.types, wish.interval, scope.labels)
        try:
            if wish.topic is None:
                session = self._scopes.broadcaster.open_session(outbox)
                await self._serve_session(websocket, session, scope)
            else:
                if wish.since is not None and after is None:
                    websocket.send(Resync())
                websocket.connection.topics = wish.topic
                subscription = self._scopes.broadcaster.join(
                    wish.topic, outbox, after, lambda upto: websocket.send(Hello(scope.history.cursor(upto)))
                )
                await self._serve_topic(websocket, subscription)
        finally:
            websocket.connection.fate = websocket.fate

    async def _serve_topic(self, websocket: WebSocket, subscription: Subscription) -> None:
        try:
            websocket.start(websocket.send_past, subscription)
            await websocket.serve()
        finally:
            subscription.leave()

    async def _serve_session(self, websocket: WebSocket, session: Session, scope: ScopedServices) -> None:
        try:
            messages, inbox = trio.open_memory_channel[str | bytes](1)
            websocket.start(SubscriptionCommands(websocket, session, scope.history, self._turns).run, inbox)
            await websocket.serve(messages)
        finally:
            websocket.connection.topics = _some(tuple(session.topics))
            session.leave()


def _some(topics: Sequence[str]) -> str:
    """As many as a line of the log can bear."""
    more = [f"and {len(topics) - MAX_LOGGED_TOPICS} more"] if len(topics) > MAX_LOGGED_TOPICS else []
    return " ".join([*topics[:MAX_LOGGED_TOPICS], *more])
