"""One client's WebSocket: a nursery with its tasks for reading, sending and closing. And the heartbeat, which pings all
WebSockets."""

import math
from collections.abc import Sequence
from typing import Final

import trio

from progressd.broadcast.envelope import PING, Envelope, FrameBatch, text_frame
from progressd.broadcast.outbox import MemoryBudget, SocketOutbox
from progressd.broadcast.subscription import Subscription
from progressd.config.settings import Limits
from progressd.core.close_codes import (
    BATCH_FINISHED,
    DRAINING,
    JOB_DELETED,
    JOB_FINISHED,
    SLOW_CONSUMER,
    TIMED_OUT,
    TRY_AGAIN,
    CloseCode,
)
from progressd.core.errors import NotFound, ProgressdError, SlowConsumer, StoreFailed
from progressd.core.messages import JobLog, Notice, encode
from progressd.net.connection import Connection
from progressd.net.connection_log import ConnectionOutcome
from progressd.net.handshake import HandshakeRequest
from progressd.net.request import ALWAYS, header
from progressd.producers.ndjson import MAX_ANSWERS
from progressd.ws.protocol import NULL_SINK, FragmentSink, MessageSink, ServerProtocol

PUBLISH: Final = "/ws/publish"  # for producers
HOLD_TICK: Final = 0.1  # seconds: the response to a handshake waits one or two ticks at most for the first messages
MAX_HELD: Final = 16384  # bytes of the first messages that may be joined with the response
PING_BATCH: Final = 100  # pings in one pass of the event loop, 0.5 ms
CLOSE_TIMEOUT: Final = 5.0  # seconds for the client to answer a close
SLOW_CONSUMER_STALL: Final = 10.0  # seconds in which a slow consumer must read data, at least 8 KiB


def publishes(target: str) -> bool:
    """Return whether the client is a producer rather than a watcher."""
    return target.partition("?")[0] == PUBLISH


class Heartbeat:
    """Ping clients at every interval, and time out clients that do not respond. Each is identified by its outbox.

    One task serves all connections: a task per connection would take 3 KiB each.
    """

    def __init__(self, limits: Limits) -> None:
        self._interval = limits.heartbeat_interval
        self._timeout = limits.connection_timeout
        # Times at which pings and timeouts are due, soonest first. Intervals are equal, so new entries are appended.
        self._pings: dict[SocketOutbox, float] = {}
        self._timeouts: dict[SocketOutbox, float] = {}
        self._held: dict[SocketOutbox, float] = {}  # times at which held data is sent, if it has not been sent before
        self._sleeping = trio.CancelScope()

    def apply_settings(self, limits: Limits) -> None:
        """Apply reloaded limits. If they changed, intervals and timeouts count from now on."""
        if (limits.heartbeat_interval, limits.connection_timeout) != (self._interval, self._timeout):
            self._interval, self._timeout = limits.heartbeat_interval, limits.connection_timeout
            self._pings = dict.fromkeys(self._pings, trio.current_time() + self._interval)
            self._timeouts = dict.fromkeys(self._timeouts, trio.current_time() + self._timeout)
            self._sleeping.cancel()

    def add(self, outbox: SocketOutbox) -> None:
        """Start pinging a connection."""
        if not self._pings:
            self._sleeping.cancel()
        self._pings[outbox] = trio.current_time() + self._interval
        self._timeouts[outbox] = trio.current_time() + self._timeout

    def hold(self, outbox: SocketOutbox) -> None:
        """Keep the data of a new connection until `release`, but for two ticks at most, to send it at once."""
        outbox.hold()
        if not self._held:
            self._sleeping.cancel()
        self._held[outbox] = (trio.current_time() // HOLD_TICK + 2) * HOLD_TICK  # due together with others

    def heard(self, outbox: SocketOutbox) -> None:
        """Record a sign of life."""
        if self._timeouts.pop(outbox, None) is not None:
            self._timeouts[outbox] = trio.current_time() + self._timeout

    def remove(self, outbox: SocketOutbox) -> None:
        """Stop pinging a connection."""
        self._pings.pop(outbox, None)
        self._timeouts.pop(outbox, None)
        self._held.pop(outbox, None)

    async def run(self) -> None:
        """Ping and time out until cancelled."""
        while True:
            soonest = [next(iter(times.values()), math.inf) for times in (self._pings, self._timeouts, self._held)]
            with trio.CancelScope(deadline=min(soonest)) as self._sleeping:
                await trio.sleep_forever()
            now = trio.current_time()
            for outbox in _due(self._held, now):
                del self._held[outbox]
                outbox.release()
            for outbox in _due(self._timeouts, now):
                self.remove(outbox)
                outbox.end(TIMED_OUT)
            for outbox in _due(self._pings, now):
                outbox.write(PING)
                del self._pings[outbox]
                self._pings[outbox] = now + self._interval


def _due(when: dict[SocketOutbox, float], now: float) -> list[SocketOutbox]:
    """Return the next batch of due connections."""
    due: list[SocketOutbox] = []
    for outbox, at in when.items():
        if at > now or len(due) == PING_BATCH:
            break
        due.append(outbox)
    return due


class WebSocket:
    """A WebSocket from its handshake to its close. Its tasks run in `nursery`, which closes with it.

    Attributes:
        host: the request's Host header.
        closing: why the daemon closes the connection, or None.
    """

    # An idle connection is one task and these objects: with slots, and with each object created on first use.
    __slots__ = ("_heartbeat", "_limits", "_ws", "closing", "connection", "host", "nursery", "outbox")

    def __init__(
        self, connection: Connection, nursery: trio.Nursery, limits: Limits, budget: MemoryBudget, heartbeat: Heartbeat
    ) -> None:
        self.connection = connection
        handshake = connection.take_handshake()
        self.host = handshake.host
        limit = MAX_ANSWERS if publishes(handshake.target) else limits.send_buffer_bytes
        self.outbox = SocketOutbox(connection.transport, limit, nursery.start_soon, self._on_end, budget)
        self.closing: CloseCode | None = None
        self._heartbeat = heartbeat
        self.nursery = nursery
        self._limits = limits
        on_close = nursery.cancel_scope.cancel
        self._ws = ServerProtocol(
            connection, self.outbox, heartbeat.heard, handshake, limits.max_message_bytes, on_close
        )

    @property
    def _request(self) -> HandshakeRequest:
        assert self._ws.request is not None
        return self._ws.request

    @property
    def target(self) -> str:
        """The path and query of the request."""
        return self._request.target

    @property
    def origin(self) -> str:
        """The origin of the connecting page, or "" if the client is no browser."""
        return header(self._request.headers, b"origin")

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The request's headers, names in lower case."""
        return self._request.headers

    @property
    def accepted(self) -> bool:
        """Return whether the handshake was accepted, and messages can be sent."""
        return self._ws.request is None

    @property
    def outcome(self) -> ConnectionOutcome:
        """The outcome of the connection, if it was accepted and has ended."""
        if self.closing is None:
            return self._ws.outcome
        cut_off = "cut off before the close was sent" if self.outbox.congested else ""
        return ConnectionOutcome("closed", f"{self.closing.code} {self.closing.reason}", cut_off)

    def accept(self) -> None:
        """Accept the handshake."""
        self._ws.accept()

    def reject(self, error: ProgressdError) -> None:
        """Reject the handshake with the error's status and a JSON body."""
        fields = {"Content-Type": "application/json", "Connection": "close", **error.headers()}
        headers = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
        self._ws.reject(error.status, [*headers, *ALWAYS], encode(error.body()))

    def discard(self) -> None:
        """Break the reference cycles of a connection that has ended."""
        self.outbox.discard()
        self._ws.release()

    def send(self, *messages: Notice | JobLog) -> None:
        """Send messages to this client alone, unless the connection is being closed."""
        if messages and self.closing is None:
            self.outbox.write(b"".join([text_frame(encode(message)) for message in messages]))

    async def drained(self) -> None:
        """Wait until the client has read the waiting messages: a sign of life while its pongs may be delayed."""
        await self.outbox.drained()
        self._heartbeat.heard(self.outbox)

    async def replay(self, subscription: Subscription) -> None:
        """Send the replay, until the subscription delivers live messages. Most have one part, and need no task."""
        batch = await self._next_replay(subscription)
        if batch is not None:
            if len(batch.frames) > MAX_HELD:
                self.outbox.release()
            subscription.outbox.put(batch)
            batch = await self._next_replay(subscription)
        self.outbox.release()
        if batch is not None:
            self.nursery.start_soon(self._replay, subscription, batch)

    async def _replay(self, subscription: Subscription, batch: FrameBatch[Envelope] | None) -> None:
        while batch is not None:
            await self.outbox.drained()
            subscription.outbox.put(batch)
            batch = await self._next_replay(subscription)

    async def _next_replay(self, subscription: Subscription) -> FrameBatch[Envelope] | None:
        """Return the next part of a replay. Close the connection if there is none because of an error."""
        try:
            return await subscription.next_replay()
        except StoreFailed:
            self.outbox.end(TRY_AGAIN)
        except SlowConsumer:
            self.outbox.end(SLOW_CONSUMER)
        except NotFound:  # retention has deleted the job since the handshake
            self.outbox.end(JOB_DELETED)
        return None

    async def serve(self, sink: MessageSink = NULL_SINK, fragments: FragmentSink | None = None) -> None:
        """Pass on the client's messages until it disconnects. Only constant reading detects a disconnect."""
        await self._ws.read(sink, fragments)
        if self.closing is not None:
            await trio.sleep_forever()  # `_close` cancels the nursery

    def _on_end(self, closing: CloseCode) -> None:
        self.closing = closing
        self.nursery.start_soon(self._close, closing)

    async def _close(self, closing: CloseCode) -> None:
        await self._ws.settle(dropping=closing != DRAINING)
        with trio.move_on_after(self._limits.connection_timeout):
            if closing in (JOB_FINISHED, BATCH_FINISHED):
                await self.outbox.drained()
            elif closing == SLOW_CONSUMER:
                await self._drained_or_stalled()
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._ws.aclose(*(self.closing or closing))  # `closing` may have changed in the meantime
        self.nursery.cancel_scope.cancel()

    async def _drained_or_stalled(self) -> None:
        """Wait while a slow consumer reads a partly sent message, which no budget counts any longer."""
        unsent = -1
        while self.outbox.congested and self.outbox.unsent != unsent:
            unsent = self.outbox.unsent
            with trio.move_on_after(SLOW_CONSUMER_STALL):
                await self.outbox.drained()
