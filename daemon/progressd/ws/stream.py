"""The stream under a WebSocket: every byte trio-websocket writes goes through the connection's one ordered outbox."""

from collections.abc import Callable

import trio

from progressd.broadcast.outbox import SocketOutbox
from progressd.ws.heartbeat import Heartbeat
from progressd.ws.listener import Connection


class WebSocketStream(trio.abc.Stream):
    """What trio-websocket reads from and writes to. The listener, not this, closes the socket in the end."""

    __slots__ = ("_connection", "_head_left", "_heartbeat", "_on_close", "_opened", "_outbox")

    def __init__(
        self, connection: Connection, outbox: SocketOutbox, heartbeat: Heartbeat, on_close: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._on_close = on_close
        self._head_left = connection.unread.find(b"\r\n\r\n") + 4
        self._opened: trio.Event | None = trio.Event()
        self._heartbeat = heartbeat

    def opened(self) -> None:
        """The handshake is over: what came behind it can be read."""
        if self._opened is not None:
            self._opened.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The request head first, and nothing more before `opened`: it would lie in wsproto until more comes."""
        if self._head_left:
            data = await self._connection.receive_some(min(max_bytes or self._head_left, self._head_left))
            self._head_left -= len(data)
            return data
        if self._opened is not None:
            await self._opened.wait()
            self._opened = None
        data = await self._connection.receive_some(max_bytes)
        self._heartbeat.heard(self._outbox)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._outbox.write(bytes(data))
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._on_close()
        await trio.lowlevel.checkpoint()
