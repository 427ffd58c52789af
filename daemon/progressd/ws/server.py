"""The WebSocket server: accept or reject handshakes, count clients, and close all connections on shutdown."""

from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import parse_qsl

import structlog
import trio
from trio_websocket import ConnectionClosed
from wsproto.utilities import LocalProtocolError

from progressd.auth.api_keys import Scope
from progressd.auth.authenticator import ANONYMOUS, Authenticator, Client, Identity, admit, require
from progressd.auth.limits import ConnectionLimiter, RateLimiter, client_address
from progressd.broadcast.filters import ThrottledOutbox, filtered_outbox
from progressd.broadcast.outbox import MemoryBudget, Outbox
from progressd.config.settings import Settings
from progressd.core.close_codes import CREDENTIALS_EXPIRED, CloseCode
from progressd.core.errors import NotFound, ProgressdError, Stopping, TokenExpired
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.messages import ALL_JOBS, Hello, Notice, Resync, batch_topic, job_topic
from progressd.engine.log_reader import LogStart, parsed_start, require_log
from progressd.engine.view import ClientView, Engine
from progressd.net.connection import Connection
from progressd.net.connection_log import LEFT_HANDSHAKE, rejected
from progressd.net.request import StreamQuery, StreamRequest, check_host, check_origin, require_known, stream_request
from progressd.producers.ndjson import NDJSONReader
from progressd.ws.logs import LogSubscriptions, serve_log
from progressd.ws.publish import PublishHandler
from progressd.ws.subscriptions import SubscriptionCommands
from progressd.ws.websocket import Heartbeat, WebSocket, publishes

log = structlog.get_logger(__name__)


class WebSocketServer:
    """Serve connections whose first or later request is a WebSocket handshake."""

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        rate_limits: RateLimiter,
        connection_limiter: ConnectionLimiter,
        engine: Engine,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._rate_limits = rate_limits
        self._connection_limiter = connection_limiter
        self._engine = engine
        self._open: dict[WebSocket, Client] = {}  # oldest first
        self.budget = MemoryBudget(settings.limits.send_buffer_bytes_total)
        self.heartbeat = Heartbeat(settings.limits)
        self._subscribe_lock = trio.Lock()  # held by one client with many topics at a time
        self._notice: Notice | None = None  # sent to new clients
        self._draining: CloseCode | None = None

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings. Most apply to new connections only. No client is disconnected."""
        self._settings = settings
        self.heartbeat.apply_settings(settings.limits)
        self.budget.limit = settings.limits.send_buffer_bytes_total

    def __len__(self) -> int:
        return len(self._open)

    async def handle(self, connection: Connection) -> None:
        """Serve a connection until it is closed. The caller closes the socket."""
        connection.log_entry.outcome = LEFT_HANDSHAKE
        try:
            async with trio.open_nursery() as nursery:
                websocket = WebSocket(connection, nursery, self._settings.limits, self.budget, self.heartbeat)
                await self.ws_handler(websocket)
                nursery.cancel_scope.cancel()
        except* (ConnectionClosed, LocalProtocolError):
            # trio-websocket raises these if a ping crosses a close, or if the client disconnects in the handshake.
            log.debug("watcher left early", peer=connection.address)

    async def ws_handler(self, websocket: WebSocket) -> None:
        """Accept a client and serve it until it is closed, or reject it with a JSON body."""
        entry = websocket.connection.log_entry
        try:
            identity = self._admit(websocket)
            serve = await self._server_for(websocket, identity)
            websocket.accept()
            self.heartbeat.add(websocket.outbox)
        except TokenExpired:  # a page does not learn why a handshake failed, and would reconnect forever
            websocket.accept()
            websocket.outbox.end(CREDENTIALS_EXPIRED)
            entry.outcome = websocket.outcome
            await websocket.serve()
        except ProgressdError as error:
            entry.outcome = rejected(error)
            websocket.reject(error)
        else:
            if self._notice is not None:
                websocket.send(self._notice)
            if self._draining is not None:  # draining began after `_count`
                websocket.outbox.end(self._draining)
            with self._authenticator.revocable(identity, lambda: websocket.outbox.end(CREDENTIALS_EXPIRED)):
                await serve()
        finally:
            self._release(websocket)
            self.heartbeat.remove(websocket.outbox)
            websocket.discard()

    def announce(self, message: Notice, *, later: bool = True) -> None:
        """Send a notice to every client; `later`: also to clients that connect before the next announcement."""
        self._notice = message if later else None
        for websocket in self._open:
            if websocket.accepted:
                websocket.send(message)

    async def close(self, closing: CloseCode, seconds: float) -> None:
        """Reject new clients, and close the connected ones over `seconds`, so that not all reconnect at once."""
        self._draining = closing
        accepted = [websocket for websocket in self._open if websocket.accepted]
        for number, websocket in enumerate(accepted):
            if number:
                await trio.sleep(seconds / (len(accepted) - 1))
            websocket.outbox.end(closing)

    def _admit(self, websocket: WebSocket) -> Identity:
        """Check the client against all limits, and count it. Raises a ProgressdError to reject the client."""
        headers, server = websocket.headers, self._settings.server
        address = client_address(websocket.connection.address, headers, server.trusted_proxies)
        websocket.connection.log_entry.address = address
        authenticate = partial(self._authenticator.authenticate, headers, websocket.target.partition("?")[2])
        try:
            client = admit(address, authenticate, self._rate_limits.take, partial(self._check_browser, websocket))
        except TokenExpired:
            self._count(websocket, Client(address, ANONYMOUS))
            raise
        self._count(websocket, client)
        return client.identity

    def _check_browser(self, websocket: WebSocket) -> None:
        check_host(websocket.host, self._settings.server)
        check_origin(websocket.origin, websocket.host, self._settings.server)

    def _count(self, websocket: WebSocket, client: Client) -> None:
        """Count a client. Raises Unavailable if a limit is reached."""
        if self._draining is not None:
            raise Stopping("the daemon is stopping")
        client = Client(client.address, client.identity, publishes(websocket.target))
        self._connection_limiter.check(client)
        self._connection_limiter.add(client)
        self._open[websocket] = client

    def _release(self, websocket: WebSocket) -> None:
        if (client := self._open.pop(websocket, None)) is not None:
            self._connection_limiter.remove(client)

    async def _server_for(self, websocket: WebSocket, identity: Identity) -> Callable[[], Awaitable[None]]:
        """Return the function that serves an accepted client. Raises a ProgressdError to reject the client."""
        view, target = ClientView(self._engine, identity), websocket.target
        if publishes(target):
            require(identity, Scope.WRITE)
            require_known(_parameters(target))
            return PublishHandler(websocket, NDJSONReader(self._settings.ingest.max_line_bytes, view)).serve
        require(identity, Scope.READ)
        if (job_id := logged_job(target)) is not None:
            start = parsed_start(_parameters(target))
            job = await view.job(checked_job_id(job_id))
            require_log(identity)
            return partial(serve_log, websocket, self._engine.logs, job, start)
        request = read_stream_request(target)
        if request.topic is None:
            return partial(self._serve_session, websocket, identity, view, request)
        await view.require(request.topic)
        self.heartbeat.hold(websocket.outbox)  # `replay` sends the response to the handshake with the first messages
        return partial(self._serve_topic, websocket, view, request, request.topic)

    async def _serve_topic(self, websocket: WebSocket, view: ClientView, request: StreamRequest, topic: str) -> None:
        history, broadcaster = self._engine.history, self._engine.broadcaster
        after = None if request.since is None else history.offset(request.since, broadcaster.offset)
        if request.since is not None and after is None:
            websocket.send(Resync())
        entry = websocket.connection.log_entry
        entry.topics = topic
        outbox = filtered_outbox(websocket.outbox, request.types, view.message_filter)
        subscription = broadcaster.join(
            topic, outbox, after, lambda upto: websocket.send(Hello(history.cursor(upto))), request.interval
        )
        try:
            await websocket.replay(subscription)
            await websocket.serve()
        finally:
            subscription.leave()
            entry.outcome = websocket.outcome

    async def _serve_session(
        self, websocket: WebSocket, identity: Identity, view: ClientView, request: StreamRequest
    ) -> None:
        outbox: Outbox = websocket.outbox
        if request.interval:
            outbox = ThrottledOutbox(outbox, request.interval, websocket.nursery.start_soon)
        outbox = filtered_outbox(outbox, request.types, view.message_filter)
        session = self._engine.broadcaster.open_session(outbox)
        try:
            messages, received = trio.open_memory_channel[str | bytes](1)
            logs = None if not identity.logs else LogSubscriptions(websocket, self._engine.logs)
            commands = SubscriptionCommands(websocket, session, view, self._engine.history, self._subscribe_lock, logs)
            websocket.nursery.start_soon(commands.run, received)
            await websocket.serve(messages)
        finally:
            entry = websocket.connection.log_entry
            entry.outcome, entry.topics = websocket.outcome, f"{len(session.topics)} topics"
            session.leave()


def _parameters(target: str) -> dict[str, str]:
    return dict(parse_qsl(target.partition("?")[2], keep_blank_values=True))


def logged_job(target: str) -> str | None:
    """Return the id in a path such as `/ws/jobs/ID/log`, and check its query; None for other paths."""
    match target.partition("?")[0].split("/")[2:]:
        case ["jobs", text, "log"]:
            require_known(_parameters(target), LogStart)
            return text
    return None


def read_stream_request(target: str) -> StreamRequest:
    """Parse a request target, such as `/ws/jobs/ID?since=CURSOR&interval=0.5&types=completed,error`.

    Raises InvalidInput for a malformed id or query, NotFound for a path without a stream.
    """
    path, query = target.partition("?")[0], _parameters(target)
    require_known(query, StreamQuery)
    match path.split("/")[2:]:
        case []:
            topic = None
        case ["jobs"]:
            topic = ALL_JOBS
        case ["jobs", text]:
            topic = job_topic(checked_job_id(text))
        case ["batch", text]:
            topic = batch_topic(checked_batch_id(text))
        case _:
            raise NotFound(
                f"there is no stream at {path[:200]}: try /ws/jobs, /ws/jobs/JOB_ID, "
                "/ws/jobs/JOB_ID/log or /ws/batch/BATCH_ID"
            )
    return stream_request(topic, query)
