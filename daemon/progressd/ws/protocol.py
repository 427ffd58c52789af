"""trio-websocket's end of a connection, with what a client could use against the daemon put right, and small.

Most watchers are idle most of the time. What trio-websocket, as it is, keeps for each of them comes to 8 KiB: a task
that reads and hands over through a memory channel, events that nobody waits for, a lock, and the handshake. Here the
connection's own task reads, and what is not needed before the connection closes is made then.
"""

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final, Protocol

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from progressd.auth.authenticator import SUBPROTOCOL
from progressd.net.connection_log import CUT_OFF, ConnectionOutcome
from progressd.net.listener import HandshakeRequest
from progressd.ws.stream import WebSocketStream

CODES: Final = frozenset(CloseReason)
FAULTS: Final = {
    1002: "1002 protocol error",
    1007: "1007 not utf-8",
    1008: "1008 too many empty frames",
    1009: "1009 message too big",
}
MAX_RECEIVE: Final = 4096  # bytes read at once
FRAMES_AT_ONCE: Final = 8  # frames handled in one turn of the event loop: 0.1 ms, however small they are
EMPTY_MOST: Final = 500  # frames without content in EMPTY_WINDOW; honest clients ping once a second at most
EMPTY_WINDOW: Final = 10.0  # seconds
FLOOD: Final = CloseConnection(code=CloseReason.POLICY_VIOLATION, reason="too many empty frames")


class MessageSink(Protocol):
    """Where a client's messages go; a Trio memory channel, for one."""

    async def send(self, message: str | bytes, /) -> None:
        """Take a message."""

    async def aclose(self) -> None:
        """There will be no more."""


class FragmentSink(Protocol):
    """Where a client's messages go piece by piece, so that none is too long."""

    async def take(self, piece: bytes, finished: bool) -> None:
        """Take a piece of a message; `finished`: its last."""

    async def settle(self, *, dropping: bool) -> None:
        """Take no more, and do what is to be done before a close; `dropping`: but for what has not been begun."""


class NullSink:
    """The inbox of a watcher of one stream, who has nothing to say."""

    async def send(self, message: str | bytes, /) -> None:
        """Forget it."""

    async def aclose(self) -> None:
        """Nothing to do."""


NULL_SINK: Final = NullSink()
_UNHEARD: Final = trio.Event()  # stands for events that nobody waits for
_NO_PINGS: Final = OrderedDict[bytes, trio.Event]()  # our pings need no answer but a sign of life


class ServerProtocol(WebSocketConnection):
    """A server's connection. Checked with trio-websocket 0.12.2, whose event handlers these are."""

    _client_closed = False  # it was the client who began to close
    _is_read = False  # somebody takes its messages
    _empty_frames = 0  # since the window began
    _window_end = 0.0

    def __init__(self, stream: WebSocketStream, upgrade: HandshakeRequest, max_message_size: int) -> None:
        super().__init__(stream, upgrade.protocol, max_message_size=max_message_size)
        self.request: WebSocketRequest | None = WebSocketRequest(self, upgrade.request)  # until it is accepted
        self._outlet = stream
        self._pings = _NO_PINGS
        self._open_handshake = self._close_handshake = self._for_testing_peer_closed_connection = _UNHEARD
        self._hand_on_to(NULL_SINK)
        self._pieces: FragmentSink | None = None  # instead of the inbox
        del self._stream_lock, self._connection_proposal

    @property
    def fate(self) -> ConnectionOutcome:
        """How it ended, where the daemon has not ended it."""
        if self.closed is None:
            return CUT_OFF
        code = self.closed.code
        if code == CloseReason.ABNORMAL_CLOSURE:
            return ConnectionOutcome("left", "no close")
        if not self._client_closed:
            return ConnectionOutcome("closed", FAULTS[code])
        return ConnectionOutcome("left", str(code) if code in CODES else "another code", self.closed.reason or "")

    async def accept(self) -> None:
        """Let the client in."""
        assert self.request is not None
        await self.request.accept(subprotocol=_chosen(self.request.proposed_subprotocols))
        self.request = None
        framing: Any = self._wsproto.connection
        framing._events = ()  # that it never has: 0.6 KiB of an empty deque
        self._wsproto = framing  # without the handshake, 2 KiB

    async def read(self, inbox: MessageSink, pieces: FragmentSink | None = None) -> None:
        """Hand on what the client says, whole or in pieces, until the connection is closed or broken."""
        self._hand_on_to(inbox)
        self._pieces = pieces
        self._is_read = pieces is not None or inbox is not NULL_SINK
        while self._reader_running:
            try:
                data = await self._outlet.connection.receive_some(MAX_RECEIVE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                await self.settle()
                if self._wsproto.state is not ConnectionState.CLOSED:
                    await self._abort_web_socket()
                return
            self._outlet.heard()
            if self._wsproto.state is not ConnectionState.CLOSED:
                self._wsproto.receive_data(data)
            del data
            await self._take_events()

    async def settle(self, *, dropping: bool = False) -> None:
        """Let be done what is to be done before a close."""
        if self._pieces is not None:
            await self._pieces.settle(dropping=dropping)

    async def aclose(self, code: int = 1000, reason: str | None = None) -> None:
        """Send a close, and wait for the client's."""
        self._close_handshake = trio.Event()
        await super().aclose(code, reason)

    def release(self) -> None:
        """Break reference cycles: with the request of a refused client, with a producer, of wsproto's parser."""
        if self.request is None:
            framing: Any = self._wsproto
            del framing._proto._parse_more
        self.request = self._pieces = None

    def _hand_on_to(self, inbox: MessageSink) -> None:
        channel: Any = inbox  # of a channel the handlers use no more than this
        self._send_channel = self._recv_channel = channel

    async def _take_events(self) -> None:
        for number, event in enumerate(self._wsproto.events(), 1):
            if self._floods(event):
                await self._handle_close_connection_event(FLOOD)
                return
            if number % FRAMES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            try:
                match event:
                    case BytesMessage() | TextMessage():
                        await self._handle_message_event(event)
                    case Ping():
                        await self._handle_ping_event(event)
                    case CloseConnection():
                        await self._handle_close_connection_event(event)
            except ConnectionClosed:
                self._reader_running = False
                return

    def _floods(self, event: Event) -> bool:
        """Whether the client sends more frames without content than an honest one does.

        Control frames and empty data frames count, and every data frame that nobody reads.
        """
        if isinstance(event, Message) and (not event.frame_finished or (event.data and self._is_read)):
            return False
        now = trio.current_time()
        if now >= self._window_end:
            self._window_end, self._empty_frames = now + EMPTY_WINDOW, 0
        self._empty_frames += 1
        return self._empty_frames > EMPTY_MOST

    async def _send(self, event: Event) -> None:
        """Without a lock: whole frames, in order, go to an outbox, which never blocks."""
        data = self._wsproto.send(event)
        if isinstance(event, CloseConnection):
            await self._outlet.send_close(data)
        else:
            await self._outlet.send_all(data)

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        """Fragments without a byte do not count against the longest message, but a list of them would grow for ever."""
        if self._pieces is not None:
            piece = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            await self._pieces.take(piece, event.message_finished)
        elif event.data or event.message_finished:
            await super()._handle_message_event(event)

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        """A client that broke the protocol, which wsproto reports like a close of the client's, is told which way."""
        await self.settle()
        if self._wsproto.state is ConnectionState.OPEN:
            await self._send(event)
        self._client_closed = self._wsproto.state is ConnectionState.REMOTE_CLOSING
        await super()._handle_close_connection_event(event)

    async def _handle_ping_event(self, event: Ping) -> None:
        """A ping that crosses our close cannot be answered any more, and failing at that would end everything."""
        if self._wsproto.state is ConnectionState.OPEN:
            await super()._handle_ping_event(event)


def _chosen(offered: Collection[str]) -> str | None:
    """None, or where a token is among them the first that is none: the browser wants one of those that it offered."""
    if not any(name.startswith(SUBPROTOCOL) for name in offered):
        return None
    return next((name for name in offered if not name.startswith(SUBPROTOCOL)), next(iter(offered)))
