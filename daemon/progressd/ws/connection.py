"""One watcher's WebSocket: a nursery with its tasks for reading, sending, heartbeat and timeout."""

from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeAlias

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from progressd.broadcast.frames import PING, text_frame
from progressd.broadcast.outbox import Outbox, SocketOutbox
from progressd.broadcast.pace import Paced, Selected
from progressd.broadcast.subscription import Subscription
from progressd.config.settings import Limits
from progressd.core.closing import JOB_FINISHED, TIMED_OUT, TRY_AGAIN, Closing
from progressd.core.errors import ProgressdError, StoreFailed, Unavailable
from progressd.core.messages import Notice, encode
from progressd.ws.listener import Connection, header
from progressd.ws.stream import WebSocketStream

OnMessage: TypeAlias = Callable[[str | bytes], Awaitable[None]]

CLOSE_TIMEOUT: Final = 5.0  # seconds a peer has to answer our close


class WebSocket:
    """A connection from its handshake to its close; its tasks are scoped to `nursery`, which ends with it."""

    def __init__(self, connection: Connection, nursery: trio.Nursery, limits: Limits) -> None:
        self.peer = connection.peer
        self.host = header(connection.unread, b"host").decode("latin-1")
        self.outbox = SocketOutbox(connection, limits.outbox_bytes, nursery.start_soon, self._on_end)
        self.closing: Closing | None = None  # why we close it, if it is us who do
        self._stream = WebSocketStream(connection, self.outbox, nursery.cancel_scope.cancel)
        self.start = nursery.start_soon
        self._nursery = nursery
        self._limits = limits
        self._ended = trio.Event()

    async def request(self) -> WebSocketRequest | None:
        """What the client asks for; None if it does not say so in time."""
        with trio.move_on_after(self._limits.handshake_timeout):
            return await wrap_server_stream(
                self._nursery, self._stream, max_message_size=self._limits.max_message_bytes
            )
        return None

    def send(self, message: Notice) -> None:
        """Say something to this client alone."""
        self.outbox.write(text_frame(encode(message)))

    async def send_past(self, subscription: Subscription) -> None:
        """Send what was before the connection, until the present goes out by itself."""
        try:
            while (batch := await subscription.past()) is not None:
                await self.outbox.drained()
                subscription.outbox.put(batch)
        except StoreFailed:
            self.outbox.end(TRY_AGAIN)

    async def serve(self, ws: WebSocketConnection, on_message: OnMessage) -> None:
        """Hand on what the client says, until there is no more to send, the client leaves, or it must be closed."""
        self._nursery.start_soon(self._read, ws, on_message)
        self._nursery.start_soon(self._heartbeat)
        await self._ended.wait()
        assert self.closing is not None
        if self.closing is JOB_FINISHED:
            with trio.move_on_after(self._limits.connection_timeout):
                await self.outbox.drained()
        with trio.move_on_after(CLOSE_TIMEOUT):
            await ws.aclose(*self.closing)

    def asked_for(self, types: Collection[str] | None, interval: float) -> Outbox:
        """The outbox, behind what the client wants less of."""
        outbox: Outbox = self.outbox
        if interval:
            outbox = Paced(outbox, interval, self.start)
        if types is not None:
            outbox = Selected(outbox, types)
        return outbox

    def _on_end(self, closing: Closing) -> None:
        self.closing = closing
        self._ended.set()

    async def _read(self, ws: WebSocketConnection, on_message: OnMessage) -> None:
        """Always read, or a close would go unnoticed."""
        try:
            while True:
                await on_message(await ws.get_message())
        except StoreFailed:
            self.outbox.end(TRY_AGAIN)
        except ConnectionClosed:
            self._nursery.cancel_scope.cancel()

    async def _heartbeat(self) -> None:
        """Ping at every interval, and end the connection after a time without a sign of life."""
        interval, patience = self._limits.heartbeat_interval, self._limits.connection_timeout
        next_ping = trio.current_time() + interval
        while True:
            await trio.sleep_until(min(next_ping, self._stream.last_heard + patience))
            now = trio.current_time()
            if now >= self._stream.last_heard + patience:
                self.outbox.end(TIMED_OUT)
                return
            if now >= next_ping:
                self.outbox.write(PING)
                next_ping = now + interval


async def reject(request: WebSocketRequest, error: ProgressdError) -> None:
    """Refuse a handshake with the error's status and a JSON body."""
    headers = [(b"Content-Type", b"application/json"), (b"Connection", b"close")]
    body: dict[str, object] = {"error": str(error)}
    if isinstance(error, Unavailable):
        headers.append((b"Retry-After", str(error.retry_after).encode()))
        body["retry_after"] = error.retry_after
    await request.reject(error.status, extra_headers=headers, body=encode(body))
