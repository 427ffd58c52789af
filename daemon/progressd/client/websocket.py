"""One WebSocket connection of a client, from the first packet to its end; it never reconnects.

The stream is opened and closed here: trio-websocket's own client leaves its socket open when the server closes first.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import trio
from trio_websocket import CloseReason, ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream
from wsproto.utilities import ProtocolError

from progressd.client.errors import StreamClosed
from progressd.client.stream import unwrapped
from progressd.client.tls import context

ANSWER_TIMEOUT: Final = 10.0  # seconds to connect, for the handshake, and for a pong
GOODBYE_TIMEOUT: Final = 0.1  # seconds to send the close frame; when we were cancelled, nobody reads the answer
LONGEST_MESSAGE: Final = 16 << 20  # characters; a page preview is by far the longest
QUEUED: Final = 16  # messages

BREAKS: Final = (
    StreamClosed,
    HandshakeError,
    ConnectionClosed,
    ProtocolError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)
"""All the ways in which a connection does not come about or ends, but for a close with code 1000."""


async def receive_texts(
    url: str, headers: Mapping[str, str], heartbeat: float, take: Callable[[str], Awaitable[None]]
) -> None:
    """Hand the text messages from a ws:// or wss:// URL to `take`, until it is closed with code 1000.

    `headers` go with the handshake. `heartbeat`: seconds between pings; without an answer to one the connection is
    taken for lost. Raises one of BREAKS.
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
                        trio.StapledStream(stream, _Noticed(stream, opening)),  # type: ignore[arg-type]
                        parts.netloc.rpartition("@")[2],
                        resource,
                        extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                        message_queue_size=QUEUED,
                        max_message_size=LONGEST_MESSAGE,
                        receive_buffer_size=None,
                    )
                if opening.cancelled_caught:
                    raise trio.BrokenResourceError("closed before the handshake was answered")
                closed = await _listen(websocket, heartbeat, take)
                nursery.cancel_scope.cancel()
    if closed is None:
        raise StreamClosed(1006, "no sign of life from the daemon")
    if closed.code != 1000:
        raise StreamClosed(closed.code, closed.reason or "")


async def _listen(
    websocket: WebSocketConnection, heartbeat: float, take: Callable[[str], Awaitable[None]]
) -> CloseReason | None:
    """Why the daemon closed the connection, or None if it is gone without a word."""
    pulse = KeepAlive(websocket)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pulse.check, heartbeat, nursery.cancel_scope)
            while (text := await pulse.receive()) is not None:
                await take(text)
            nursery.cancel_scope.cancel()
        return websocket.closed
    finally:
        with trio.move_on_after(GOODBYE_TIMEOUT, shield=True):
            await websocket.aclose()


async def _connected(
    host: str, port: int | None, *, tls: bool
) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    if not tls:
        return await trio.open_tcp_stream(host, port or 80)
    stream = await trio.open_ssl_over_tcp_stream(host, port or 443, https_compatible=True, ssl_context=context())
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


class _Noticed(trio.abc.ReceiveStream):
    """What comes from a stream; its end cancels the handshake, which would wait for its answer all the same."""

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
    """Notices that a daemon is gone without a word: nothing came while we waited for it, not even a pong."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._waiting = False
        self._messages = 0

    async def receive(self) -> str | None:
        """The next text, or None when the connection is closed."""
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
        """Send a ping every `interval` seconds, and cancel the connection if that stays without any answer."""
        while True:
            await trio.sleep(interval)
            messages = self._messages
            with trio.move_on_after(min(interval, ANSWER_TIMEOUT)) as asking:
                try:
                    await self._websocket.ping()
                except (ConnectionClosed, ProtocolError):
                    return
            # while nobody takes the messages that came, the pong waits behind them
            if asking.cancelled_caught and self._waiting and self._messages == messages:
                connection.cancel()
