"""The server side of trio-websocket, made robust and small. Only this file uses the library's internals.

Checked with trio-websocket 0.12.2 and wsproto 1.3.2. Most watchers are idle most of the time, and trio-websocket keeps
8 KiB for each: a reader task with a memory channel, events, a lock, a parser and the handshake. Here the connection's
own task reads, and objects that only a close or a client's frame needs are created then.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Protocol

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason

from progressd.auth.authenticator import SUBPROTOCOL
from progressd.broadcast.outbox import SocketOutbox
from progressd.net.connection import Connection
from progressd.net.connection_log import CUT_OFF, ConnectionOutcome
from progressd.net.handshake import HandshakeRequest, accepting, rejecting

CODES: Final = frozenset(CloseReason)
FAULTS: Final = {
    1002: "1002 protocol error",
    1007: "1007 not utf-8",
    1008: "1008 too many empty frames",
    1009: "1009 message too big",
}
MAX_RECEIVE: Final = 4096  # bytes in one read
FRAME_BATCH: Final = 8  # frames in one pass of the event loop: 0.1 ms
MAX_EMPTY_FRAMES: Final = 500  # in EMPTY_FRAMES_WINDOW; clients have no reason to ping more than once a second
EMPTY_FRAMES_WINDOW: Final = 10.0  # seconds
PONG: Final = b"\x8a\x80"  # of a client, without a payload: the response to a heartbeat; the mask follows
MASK_BYTES: Final = 4
FLOOD: Final = CloseConnection(code=CloseReason.POLICY_VIOLATION, reason="too many empty frames")


class MessageSink(Protocol):
    """Receive a client's messages. A Trio memory channel is one implementation."""

    async def send(self, message: str | bytes, /) -> None: ...

    async def aclose(self) -> None: ...


class FragmentSink(Protocol):
    """Receive a client's messages in fragments, which are bounded in size."""

    async def take(self, fragment: bytes, finished: bool) -> None:
        """Take a fragment of a message; `finished`: the last one."""

    async def settle(self, *, dropping: bool) -> None:
        """Stop taking fragments, and finish the taken ones before a close; `dropping`: drop the unstarted ones."""


class NullSink:
    """Drop the messages of a client that watches one stream."""

    async def send(self, message: str | bytes, /) -> None: ...

    async def aclose(self) -> None: ...


NULL_SINK: Final = NullSink()
_NEVER_SET: Final = trio.Event()  # in place of events that no task waits for


class LazyFrames:
    """The frames of a connection, as wsproto parses and writes them.

    The parser takes 2 KiB. It exists only once the client has sent a frame other than the response to a heartbeat.
    """

    __slots__ = ("_frames",)

    client = False

    def __init__(self) -> None:
        self._frames: Frames | None = None

    @property
    def state(self) -> ConnectionState:
        """The state of the connection."""
        return ConnectionState.OPEN if self._frames is None else self._frames.state

    def send(self, event: Event) -> bytes:
        """Return the bytes to send."""
        return self._existing().send(event)

    def receive_data(self, data: bytes) -> None:
        """Parse some bytes."""
        if self._frames is not None or not (len(data) == len(PONG) + MASK_BYTES and data.startswith(PONG)):
            self._existing().receive_data(data)

    def events(self) -> Iterable[Event]:
        """Return the frames in the bytes that were received last."""
        return (Pong(),) if self._frames is None else self._frames.events()

    def release(self) -> None:
        """Break a reference cycle."""
        if self._frames is not None:
            framing: Any = self._frames
            del framing._proto._parse_more

    def _existing(self) -> Frames:
        if self._frames is None:
            self._frames = Frames(ConnectionType.SERVER)
            framing: Any = self._frames
            framing._events = ()  # never used: an empty deque takes 0.6 KiB
        return self._frames


class ServerProtocol(WebSocketConnection):
    """A server connection with its own event handlers."""

    __slots__ = ("_connection", "_fragments", "_heard", "_on_close", "_outbox", "request")

    # What the methods of the base class need. Its constructor creates more objects: a tenth of the time of a handshake.
    _id = 0
    _close_reason = None
    _message_size = 0
    _reader_running = True
    _close_handshake = _for_testing_peer_closed_connection = _NEVER_SET

    _client_closed = False  # the client has begun to close
    _is_read = False  # a sink uses the client's messages
    _empty_frames = 0  # empty frames since the window began
    _window_end = 0.0

    def __init__(
        self,
        connection: Connection,
        outbox: SocketOutbox,
        heard: Callable[[SocketOutbox], None],
        handshake: HandshakeRequest,
        max_message_size: int,
        on_close: Callable[[], None],
    ) -> None:
        self._wsproto: Any = LazyFrames()
        self._max_message_size = max_message_size
        self._message_parts = []
        self.request: HandshakeRequest | None = handshake  # None once accepted
        self._connection = connection
        self._outbox = outbox
        self._heard = heard
        self._on_close = on_close
        self._pass_messages_to(NULL_SINK)
        self._fragments: FragmentSink | None = None  # takes messages in place of `sink`

    @property
    def outcome(self) -> ConnectionOutcome:
        """The outcome of the connection, unless the daemon closed it."""
        if self.closed is None:
            return CUT_OFF
        code = self.closed.code
        if code == CloseReason.ABNORMAL_CLOSURE:
            return ConnectionOutcome("left", "no close")
        if not self._client_closed:
            return ConnectionOutcome("closed", FAULTS[code])
        return ConnectionOutcome("left", str(code) if code in CODES else "another code", self.closed.reason or "")

    def accept(self) -> None:
        """Accept the handshake."""
        assert self.request is not None
        self._outbox.write(accepting(self.request.key, _subprotocol(self.request.subprotocols)))
        self.request = None

    def reject(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Reject the handshake."""
        self._outbox.write(rejecting(status, headers, body))

    async def read(self, sink: MessageSink, fragments: FragmentSink | None = None) -> None:
        """Pass on the client's messages, whole or in fragments, until the connection is closed or broken."""
        self._pass_messages_to(sink)
        self._fragments = fragments
        self._is_read = fragments is not None or sink is not NULL_SINK
        while self._reader_running:
            try:
                data = await self._connection.receive_some(MAX_RECEIVE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                await self.settle()
                if self._wsproto.state is not ConnectionState.CLOSED:
                    await self._abort_web_socket()
                return
            self._heard(self._outbox)
            if self._wsproto.state is not ConnectionState.CLOSED:
                self._wsproto.receive_data(data)
            del data
            await self._take_events()

    async def settle(self, *, dropping: bool = False) -> None:
        """Finish pending work before a close."""
        if self._fragments is not None:
            await self._fragments.settle(dropping=dropping)

    async def aclose(self, code: int = 1000, reason: str | None = None) -> None:
        """Send a close, and wait for the client's close."""
        self._close_handshake = trio.Event()
        await super().aclose(code, reason)

    def release(self) -> None:
        """Break reference cycles: with a rejected request, with a producer, and inside wsproto's parser."""
        self._wsproto.release()
        self.request = self._fragments = None

    def _pass_messages_to(self, sink: MessageSink) -> None:
        channel: Any = sink  # the handlers use no other methods of a channel
        self._send_channel = self._recv_channel = channel

    async def _take_events(self) -> None:
        for number, event in enumerate(self._wsproto.events(), 1):
            if self._floods(event):
                await self._handle_close_connection_event(FLOOD)
                return
            if number % FRAME_BATCH == 0:
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
        """Return whether the client sends too many frames without content.

        These are control frames, empty data frames, and data frames that no sink uses.
        """
        if isinstance(event, Message) and (not event.frame_finished or (event.data and self._is_read)):
            return False
        now = trio.current_time()
        if now >= self._window_end:
            self._window_end, self._empty_frames = now + EMPTY_FRAMES_WINDOW, 0
        self._empty_frames += 1
        return self._empty_frames > MAX_EMPTY_FRAMES

    async def _send(self, event: Event) -> None:
        """Send without a lock: the outbox accepts whole frames in order, and never blocks."""
        data = self._wsproto.send(event)
        if isinstance(event, CloseConnection):
            self._outbox.write_close(data)
        else:
            self._outbox.write(data)
        await trio.lowlevel.checkpoint()

    async def _close_stream(self) -> None:
        self._reader_running = False
        self._on_close()  # the listener closes the socket
        await trio.lowlevel.checkpoint()

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        """Drop empty fragments: they do not count against the size limit, and trio-websocket would keep them all."""
        if self._fragments is not None:
            fragment = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            await self._fragments.take(fragment, event.message_finished)
        elif event.data or event.message_finished:
            await super()._handle_message_event(event)

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        """Send the reason to a client that broke the protocol, which wsproto reports like a close by the client."""
        await self.settle()
        if self._wsproto.state is ConnectionState.OPEN:
            await self._send(event)
        self._client_closed = self._wsproto.state is ConnectionState.REMOTE_CLOSING
        await super()._handle_close_connection_event(event)

    async def _handle_ping_event(self, event: Ping) -> None:
        """Ignore a ping that crosses the daemon's close frame: wsproto would raise an error."""
        if self._wsproto.state is ConnectionState.OPEN:
            await super()._handle_ping_event(event)


def _subprotocol(offered: Collection[str]) -> str | None:
    """Return the first subprotocol that is not a token, otherwise a token: a browser expects one of its offers."""
    if not any(name.startswith(SUBPROTOCOL) for name in offered):
        return None
    return next((name for name in offered if not name.startswith(SUBPROTOCOL)), next(iter(offered)))
