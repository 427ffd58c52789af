"""trio-websocket's end of a connection, with what a client could use against the daemon put right."""

from typing import Final

import trio
from trio_websocket import WebSocketConnection, WebSocketRequest
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from progressd.ws.ledger import CUT_OFF, Fate

CODES: Final = frozenset(CloseReason)
FAULTS: Final = {1002: "1002 protocol error", 1007: "1007 not utf-8", 1009: "1009 message too big"}


class Endpoint(WebSocketConnection):
    """A server's connection. Checked with trio-websocket 0.12.2, whose event handlers these are."""

    def __init__(self, stream: trio.abc.Stream, max_message_size: int) -> None:
        super().__init__(stream, WSConnection(ConnectionType.SERVER), max_message_size=max_message_size)
        self._client_closed = False  # it was the client who began to close

    async def request(self, nursery: trio.Nursery) -> WebSocketRequest:
        """Start reading, and wait for the handshake."""
        nursery.start_soon(self._reader_task)
        return await self._get_request()

    @property
    def fate(self) -> Fate:
        """How it ended, where the daemon has not ended it."""
        if self.closed is None:
            return CUT_OFF
        code = self.closed.code
        if code == CloseReason.ABNORMAL_CLOSURE:
            return Fate("left", "no close")
        if not self._client_closed:
            return Fate("closed", FAULTS[code])
        return Fate("left", str(code) if code in CODES else "another code", self.closed.reason or "")

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        """Fragments without a byte do not count against the longest message, but a list of them would grow for ever."""
        if event.data or event.message_finished:
            await super()._handle_message_event(event)

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        """A client that broke the protocol, which wsproto reports like a close of the client's, is told which way."""
        if self._wsproto.state is ConnectionState.OPEN:
            await self._send(event)
        self._client_closed = self._wsproto.state is ConnectionState.REMOTE_CLOSING
        await super()._handle_close_connection_event(event)

    async def _handle_ping_event(self, event: Ping) -> None:
        """A ping that crosses our close cannot be answered any more, and failing at that would end everything."""
        if self._wsproto.state is ConnectionState.OPEN:
            await super()._handle_ping_event(event)
