"""One client's WebSocket: a nursery with its tasks for reading, sending and closing."""

from collections.abc import Collection, Mapping
from typing import Final

import trio
from trio_websocket import WebSocketRequest

from progressd.broadcast.envelope import text_frame
from progressd.broadcast.memory_budget import MemoryBudget
from progressd.broadcast.outbox import Outbox, SocketOutbox
from progressd.broadcast.subscription import Subscription
from progressd.broadcast.throttle import filtered_outbox
from progressd.config.settings import Limits
from progressd.core.close_codes import (
    BATCH_FINISHED,
    DRAINING,
    JOB_DELETED,
    JOB_FINISHED,
    SLOW_CONSUMER,
    TRY_AGAIN,
    CloseCode,
)
from progressd.core.errors import NotFound, ProgressdError, StoreFailed
from progressd.core.messages import Notice, encode
from progressd.net.connection_log import ConnectionOutcome
from progressd.net.headers import ALWAYS, header
from progressd.net.listener import Connection
from progressd.producers.ndjson import MAX_ANSWERS
from progressd.ws.handshake import publishes
from progressd.ws.keepalive import KeepAlive
from progressd.ws.protocol import NULL_SINK, FragmentSink, MessageSink, ServerProtocol
from progressd.ws.stream import WebSocketStream

CLOSE_TIMEOUT: Final = 5.0  # seconds a peer has to answer our close
SLOW_CONSUMER_STALL: Final = 10.0  # seconds in which a slow consumer has to read something; 8 KiB of it are seen here


class WebSocket:
    """A connection from its handshake to its close; its tasks are scoped to `nursery`, which ends with it."""

    # An idle connection is one task and these objects: with slots, and nothing made before it is needed.
    __slots__ = (
        "_limits",
        "_nursery",
        "_stream",
        "_ws",
        "closing",
        "connection",
        "host",
        "outbox",
        "start",
    )

    def __init__(
        self, connection: Connection, nursery: trio.Nursery, limits: Limits, budget: MemoryBudget, heartbeat: KeepAlive
    ) -> None:
        self.connection = connection
        upgrade, connection.upgrade = connection.upgrade, None
        assert upgrade is not None
        self.host = upgrade.host
        connection.unread = connection.unread[upgrade.size :]
        most = MAX_ANSWERS if publishes(upgrade.request.target) else limits.send_buffer_bytes
        self.outbox = SocketOutbox(connection, most, nursery.start_soon, self._on_end, budget)
        self.closing: CloseCode | None = None  # why we close it, if it is us who do
        self.start = nursery.start_soon
        self._stream = WebSocketStream(connection, self.outbox, heartbeat, nursery.cancel_scope.cancel)
        self._nursery = nursery
        self._limits = limits
        self._ws = ServerProtocol(self._stream, upgrade, limits.max_message_bytes)

    @property
    def _request(self) -> WebSocketRequest:
        assert self._ws.request is not None
        return self._ws.request

    @property
    def target(self) -> str:
        """Path and query of the request."""
        return self._request.path

    @property
    def origin(self) -> str:
        """The site whose page asks, "" when it is no browser."""
        return header(self._request.headers, b"origin")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those of the request, by their names in lower case; without Host."""
        offered = ",".join(self._request.proposed_subprotocols).encode()
        return [*self._request.headers, (b"sec-websocket-protocol", offered)]  # which wsproto has taken out

    @property
    def accepted(self) -> bool:
        """Whether the client has been let in, and messages can be sent."""
        return self._ws.request is None

    @property
    def fate(self) -> ConnectionOutcome:
        """How it ended, once it was accepted and is over."""
        if self.closing is None:
            return self._ws.fate
        cut_off = "cut off before the close was sent" if self.outbox.congested else ""
        return ConnectionOutcome("closed", f"{self.closing.code} {self.closing.reason}", cut_off)

    async def accept(self) -> None:
        """Let the client in."""
        await self._ws.accept()

    async def reject(self, error: ProgressdError) -> None:
        """Refuse the client, with the error's status and a JSON body."""
        fields = {"Content-Type": "application/json", "Connection": "close", **error.headers()}
        headers = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
        await self._request.reject(error.status, extra_headers=[*headers, *ALWAYS], body=encode(error.body()))

    def discard(self) -> None:
        """Break the reference cycles of a connection that is over."""
        self.outbox.discard()
        self._ws.release()

    def send(self, *messages: Notice) -> None:
        """Send messages to this client alone, unless the connection is being closed."""
        if messages and self.closing is None:
            self.outbox.write(b"".join([text_frame(encode(message)) for message in messages]))

    async def taken(self) -> None:
        """Wait until the client has taken what waits, which is a sign of life: its pongs may wait for their turn."""
        await self.outbox.drained()
        self._stream.heard()

    async def send_past(self, subscription: Subscription) -> None:
        """Send what was before the connection, until the present goes out by itself."""
        try:
            while (batch := await subscription.next_replay()) is not None:
                await self.outbox.drained()
                subscription.outbox.put(batch)
        except StoreFailed:
            self.outbox.end(TRY_AGAIN)
        except NotFound:  # it was too old, and went between the handshake and now
            self.outbox.end(JOB_DELETED)

    async def serve(self, inbox: MessageSink = NULL_SINK, pieces: FragmentSink | None = None) -> None:
        """Hand on what the client says, until it leaves; always read, or that would go unnoticed."""
        await self._ws.read(inbox, pieces)
        if self.closing is not None:
            await trio.sleep_forever()  # `_close` ends the nursery

    def asked_for(self, types: Collection[str] | None, interval: float, labels: Mapping[str, str]) -> Outbox:
        """Return the outbox, behind what the client wants less of, or may not see."""
        return filtered_outbox(self.outbox, types, interval, labels, self.start)

    def _on_end(self, closing: CloseCode) -> None:
        self.closing = closing
        self.start(self._close, closing)

    async def _close(self, closing: CloseCode) -> None:
        await self._ws.settle(dropping=closing != DRAINING)
        with trio.move_on_after(self._limits.connection_timeout):
            if closing in (JOB_FINISHED, BATCH_FINISHED):
                await self.outbox.drained()
            elif closing == SLOW_CONSUMER:
                await self._drained_or_stalled()
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._ws.aclose(*(self.closing or closing))  # it may have been given up meanwhile
        self._nursery.cancel_scope.cancel()

    async def _drained_or_stalled(self) -> None:
        """What was begun for a slow consumer is in no budget any more: it is kept only for who goes on reading."""
        unsent = -1
        while self.outbox.congested and self.outbox.unsent != unsent:
            unsent = self.outbox.unsent
            with trio.move_on_after(SLOW_CONSUMER_STALL):
                await self.outbox.drained()
