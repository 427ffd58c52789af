"""One WebSocket connection of a client. It never reconnects.

This module opens and closes the stream: trio-websocket's client leaves its socket open if the server closes first.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import trio
from trio_websocket import CloseReason, ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream
from wsproto.utilities import ProtocolError

from progressd.client.errors import StreamClosed
from progressd.client.exception_groups import unwrapped
from progressd.client.http import tls_context

ANSWER_TIMEOUT: Final = 10.0  # seconds to connect, to answer the handshake, and to answer a ping
CLOSE_TIMEOUT: Final = 0.1  # seconds to send the close frame; after a cancellation nothing reads the answer
MAX_MESSAGE: Final = 16 << 20  # characters; page previews are the longest messages
MAX_QUEUED: Final = 16  # messages

CONNECTION_ERRORS: Final = (
    StreamClosed,
    HandshakeError,
    ConnectionClosed,
    ProtocolError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)
"""All errors with which a connection can fail or end. A close with code 1000 is not an error."""


async def receive_texts(
    url: str, headers: Mapping[str, str], heartbeat: float, take: Callable[[str], Awaitable[None]]
) -> None:
    """Pass the text messages from a ws:// or wss:// URL to `take`, until the server closes with code 1000.

    `headers`: sent with the handshake. `heartbeat`: seconds between pings; an unanswered ping closes the connection.
    Raises one of CONNECTION_ERRORS.
    """
    parts = urlsplit(url)
    resource = parts.path + (f"?{parts.query}" if parts.query else "")
    with trio.fail_after(ANSWER_TIMEOUT):
        stream = await _connected(parts.hostname or "", parts.port, tls=parts.scheme == "wss")
    async with stream:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                with trio.fail_after(ANSWER_TIMEOUT), trio.CancelScope() as opening:
                    websocket = await wrap_client_stream(
                        nursery,
                        trio.StapledStream(stream, _CancelAtEnd(stream, opening)),  # type: ignore[arg-type]
                        parts.netloc.rpartition("@")[2],
                        resource,
                        extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                        message_queue_size=MAX_QUEUED,
                        max_message_size=MAX_MESSAGE,
                        receive_buffer_size=None,
                    )
                if opening.cancelled_caught:
                    raise trio.BrokenResourceError("closed before the handshake was answered")
                closed = await _listen(websocket, heartbeat, take)
                nursery.cancel_scope.cancel()
    if closed is None:
        raise StreamClosed(1006, "the daemon did not answer a ping")
    if closed.code != 1000:
        raise StreamClosed(closed.code, closed.reason or "")


async def _listen(
    websocket: WebSocketConnection, heartbeat: float, take: Callable[[str], Awaitable[None]]
) -> CloseReason | None:
    """Return the reason that the daemon gave for its close; None if it did not answer a ping."""
    keepalive = KeepAlive(websocket)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keepalive.check, heartbeat, nursery.cancel_scope)
            while (text := await keepalive.receive()) is not None:
                await take(text)
            nursery.cancel_scope.cancel()
        return websocket.closed
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await websocket.aclose()


async def _connected(
    host: str, port: int | None, *, tls: bool
) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    if not tls:
        return await trio.open_tcp_stream(host, port or 80)
    stream = await trio.open_ssl_over_tcp_stream(host, port or 443, https_compatible=True, ssl_context=tls_context())
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


class _CancelAtEnd(trio.abc.ReceiveStream):
    """A stream whose end cancels the handshake. Otherwise the handshake would wait for its answer forever."""

    def __init__(self, stream: trio.abc.ReceiveStream, opening: trio.CancelScope) -> None:
        self._stream = stream
        self._opening = opening

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self._opening.cancel()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class KeepAlive:
    """Detect an unreachable daemon: it sends nothing while the client waits, not even a pong."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._waiting = False
        self._messages = 0

    async def receive(self) -> str | None:
        """Return the next text; None if the connection is closed."""
        while True:
            self._waiting = True
            try:
                message = await self._websocket.get_message()
            except ConnectionClosed:
                return None
            self._waiting = False
            self._messages += 1
            if isinstance(message, str):
                return message

    async def check(self, interval: float, connection: trio.CancelScope) -> None:
        """Send a ping every `interval` seconds, and cancel the connection if a ping is not answered."""
        while True:
            await trio.sleep(interval)
            messages = self._messages
            with trio.move_on_after(min(interval, ANSWER_TIMEOUT)) as answer:
                try:
                    await self._websocket.ping()
                except (ConnectionClosed, ProtocolError):
                    return
            # a pong waits behind messages that the client has not read
            if answer.cancelled_caught and self._waiting and self._messages == messages:
                connection.cancel()
