"""The stream under a WebSocket: every byte trio-websocket writes goes through the connection's one ordered outbox."""

from collections.abc import Callable

import trio

from progressd.broadcast.outbox import SocketOutbox
from progressd.net.listener import Connection
from progressd.ws.keepalive import KeepAlive


class WebSocketStream(trio.abc.Stream):
    """What trio-websocket writes to. The listener, not this, closes the socket in the end."""

    __slots__ = ("_heartbeat", "_on_close", "_outbox", "connection")

    def __init__(
        self, connection: Connection, outbox: SocketOutbox, heartbeat: KeepAlive, on_close: Callable[[], None]
    ) -> None:
        self.connection = connection
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._on_close = on_close

    def heard(self) -> None:
        """The client has shown a sign of life."""
        self._heartbeat.heard(self._outbox)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.connection.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._outbox.write(bytes(data))
        await trio.lowlevel.checkpoint()

    async def send_close(self, data: bytes) -> None:
        """Send a close frame, the last one."""
        self._outbox.write_close(data)
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._on_close()
        await trio.lowlevel.checkpoint()
