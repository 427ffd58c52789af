"""A connection as Hypercorn reads from and writes to it: how long a client may take, and how much may wait for it."""

import math
from collections.abc import Collection
from typing import Final, cast

import trio

from progressd.broadcast.memory_budget import MemoryBudget
from progressd.config.settings import Limits
from progressd.http.server.protocol import MAX_SEND, Protocol
from progressd.net.base_path import BasePath
from progressd.net.connection_log import UNREAD
from progressd.net.listener import Connection

UPGRADE_GRACE: Final = 1.0  # seconds to wait for the end of a response when an upgrade follows it at once


class HttpStream(trio.abc.HalfCloseableStream):
    """It ends where an upgrade to WebSocket comes between two requests.

    Proxies do that: they send the upgrade over an idle connection that has served plain requests before.
    """

    protocol: Protocol  # which gets what is read

    def __init__(
        self,
        connection: Connection,
        base: BasePath,
        beginnings: Collection[bytes],
        limits: Limits,
        budget: MemoryBudget,
    ) -> None:
        self._connection = connection
        self._base = base
        self._beginnings = beginnings
        self._stall = limits.idle_timeout
        self._head_timeout = limits.handshake_timeout
        self._head_most = limits.max_request_header_bytes
        self._budget = budget
        self._closed = False
        self._given_up = False
        self._late = math.inf  # when a head that has begun has to be there
        self._requests = 0  # before it
        self._untaken = 0  # bytes sent since the socket had room
        self._reading = trio.CancelScope()  # to wake the reader when the stream is closed
        self._sending = trio.CancelScope()
        self._between_requests = trio.Event()
        self._between_requests.set()
        self.socket = connection.stream.socket  # Hypercorn asks it for the addresses
        self.upgrading = False

    def set_between_requests(self, between: bool) -> None:
        """Hypercorn has answered a request, or has got one."""
        if between:
            self._between_requests.set()
        else:
            self._between_requests = trio.Event()

    @property
    def is_between_requests(self) -> bool:
        """Whether no request is being answered."""
        return self._between_requests.is_set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b""
        self._time_head()
        with trio.CancelScope(deadline=self._late) as self._reading:
            if not self._closed:
                data = await self._connection.receive_some(max_bytes)
            if self.protocol.takes_lines:  # many a client reads no answer before it has sent all lines
                self._sending.deadline = trio.current_time() + self._stall
            head = data.removeprefix(b"\r\n")  # an empty line before a request is ignored
            if head and any(head[: len(one)] == one[: len(head)] for one in self._beginnings):
                data = await self._upgrade_or(data)
        if self._closed:
            raise trio.ClosedResourceError
        if self._reading.cancelled_caught:
            raise trio.BrokenResourceError("the head does not end")
        return data

    def _time_head(self) -> None:
        """A head has its time from when it is the turn of its request, however often a read ends in a next one."""
        protocol = self.protocol
        if protocol.requests != self._requests:
            self._requests, self._late = protocol.requests, math.inf
        self._late = min(self._late, self._head_deadline()) if protocol.in_head() else math.inf

    def _head_deadline(self) -> float:
        return trio.current_time() + self._head_timeout

    async def _upgrade_or(self, data: bytes) -> bytes:
        """Data that begins like an upgrade: close this stream if it is one, else give back all that was read."""
        connection = self._connection
        with trio.move_on_after(UPGRADE_GRACE):  # the response before it may not be quite over
            await self._between_requests.wait()
        if not self._between_requests.is_set() or self.protocol.has_begun():
            return data
        connection.unread = data + connection.unread
        self._reading.deadline = self._head_deadline()
        await connection.read_head(self._head_most)
        if connection.wants_websocket(self._base):
            self.upgrading = self._closed = True
            return b""
        data, connection.unread = connection.unread, b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        rest = memoryview(data)
        try:
            while rest and not self._given_up:
                if self._untaken >= MAX_SEND:
                    self._budget.hold(self, len(data))
                    await self._wait_for_room()
                    continue
                try:
                    sent = self._connection.send(cast(bytes, rest[:MAX_SEND]))
                except BlockingIOError:
                    self._untaken = MAX_SEND
                else:
                    self._untaken += sent
                    rest = rest[sent:]
        except OSError as error:
            raise trio.BrokenResourceError from error
        finally:
            self._budget.hold(self, 0)
        if self._given_up:
            raise trio.BrokenResourceError("the client does not read")
        await trio.lowlevel.checkpoint()

    async def _wait_for_room(self) -> None:
        """Until the client has taken what was sent, but for little; or give it up.

        Without this the kernel would take megabytes at once, all of which a slow client had to read in time.
        """
        if not self._given_up:
            with trio.move_on_after(self._stall) as self._sending:
                await self._connection.wait_writable()
                self._untaken = 0
            if self._sending.cancelled_caught:
                self.give_up()

    def give_up(self) -> None:
        """Close the connection under an answer that its client does not read."""
        self._given_up = True
        self._connection.fate = UNREAD
        self._connection.stream.socket.close()

    async def wait_send_all_might_not_block(self) -> None:
        await self._connection.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Left to `Connection.linger`, for after an upgrade nothing must be closed."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End the HTTP side; the listener closes the connection, or upgrades it."""
        self._closed = True
        self._reading.cancel()
        await trio.lowlevel.checkpoint()
