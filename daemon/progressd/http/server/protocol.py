"""HTTP/1.1 on one connection: h11 parses requests, Hypercorn runs the application, and each response is one write.

Checked with Hypercorn 0.17.3 and 0.18.0, whose `H11Protocol` this extends. h11 takes a quarter of the
time of a request; the rest is tasks, channels and locks for slow applications. A fast response needs none of them.
"""

import math
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from http import HTTPStatus
from traceback import clear_frames
from typing import Any, Final, NamedTuple, cast
from urllib.parse import unquote

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr

from progressd.broadcast.outbox import MemoryBudget
from progressd.config.settings import Limits
from progressd.core.errors import InvalidInput
from progressd.core.messages import encode
from progressd.http.job_cache import CachedResponse
from progressd.http.middleware import AccessMiddleware
from progressd.http.schemas import EVENT_STREAM, JSON, NDJSON
from progressd.net.connection import Connection
from progressd.net.request import ALWAYS, BasePath, header

HALF_CLOSE_TIMEOUT: Final = 2.0  # seconds within which the response to a client that has closed its side must begin
POLL_INTERVAL: Final = 1.0  # seconds between checks whether a waiting client is still connected
MAX_SEND: Final = 65536  # bytes of a response in one write
CLOSE: Final = (b"connection", b"close")
REPLACEABLE: Final = frozenset(name for name, _ in ALWAYS)
_ABSOLUTE: Final = re.compile(
    rb"https?://((?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]*)?)((?:[/?].*)?)",  # authority, path and query
    re.IGNORECASE,
)


class ServerContext(NamedTuple):
    """The state shared by HTTP connections. `upgrade_prefixes`: the first bytes of WebSocket upgrade requests."""

    app: AppWrapper
    config: Config
    worker: WorkerContext
    access: AccessMiddleware
    base: BasePath
    upgrade_prefixes: Collection[bytes]
    limits: Limits
    budget: MemoryBudget


class Protocol(H11Protocol):
    """HTTP/1.1 without upgrades. Errors are JSON.

    Args:
        on_fast_response: called for each response that bypasses the application.
        cancel: cancels all work for the client.
    """

    def __init__(
        self,
        context: ServerContext,
        connection: Connection,
        tasks: TaskGroup,
        *,
        send: Callable[[Event], Awaitable[None]],
        on_fast_response: Callable[[], None],
        cancel: Callable[[], None],
    ) -> None:
        state, sock = ConnectionState({}), connection.transport.socket
        client, server = (parse_socket_addr(sock.family, name) for name in (sock.getpeername(), sock.getsockname()))
        super().__init__(context.app, context.config, context.worker, tasks, state, False, client, server, send)
        self.requests = 0  # requests whose heads have arrived
        self.takes_lines = False  # the response answers lines while further lines arrive
        self._base = context.base
        self._access = context.access
        self._peer = connection
        self._on_fast_response = on_fast_response
        self._cancel = cancel
        self._head = b""  # head of a response; sent together with the next bytes
        self._finished = trio.Event()  # the response to the newest request is complete
        self._finished.set()
        self._has_body = False  # the request may have one, even if it is empty
        self._responding = False  # a response has begun
        self._streams_events = False  # the response ends only when the client disconnects
        self._half_closed = trio.CancelScope()

    async def _handle_events(self) -> None:
        """Replace Hypercorn's method: this one sends fast responses and knows only HTTP/1.1."""
        before = self.requests
        while True:
            if self.connection.they_are_waiting_for_100_continue:
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            if self.connection.their_state is h11.MUST_CLOSE and self.has_begun():
                await self._while_connected(self.wait_finished)  # bytes after the last request are dropped
                return
            if self._is_in_empty_line():
                return
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                clear_frames(error.__traceback__)  # h11 keeps the error in a frame of its own traceback
                if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                    await self._send_error_response(error.error_status_hint)
                await self.send(Closed())
                return
            if isinstance(event, h11.Request):
                if self.requests > before:  # many pipelined requests must not block other connections
                    await trio.lowlevel.checkpoint()
                if not await self._handle_request(event):
                    return
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self._while_connected(self.can_read.wait)
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA or self.stream is None:
                return
            elif isinstance(event, h11.Data):
                body = Body(stream_id=STREAM_ID, data=event.data)
                await self._while_connected(partial(self.stream.handle, body))
            elif isinstance(event, h11.EndOfMessage):
                await self._while_connected(partial(self.stream.handle, EndBody(stream_id=STREAM_ID)))

    async def _handle_request(self, event: h11.Request) -> bool:
        """Respond to a request or start the application. Return whether to continue reading."""
        self.requests += 1
        request = with_path(event, self._base)
        if request is None:
            await self._reject(event)
            return False
        if request.http_version == b"1.1":
            response = self._access.fast_read(request.method, request.target, request.headers, self.client)
            if response is not None:
                return await self._send_fast(response)
        await self.send(Updated(idle=False))
        await self._create_stream(request)
        return True

    def _is_in_empty_line(self) -> bool:
        """Skip an empty line before a later request (RFC 9112 §2.2), or return whether half of one has arrived.

        `Connection.read_head` does this for the first request.
        """
        connection: Any = self.connection
        if connection.their_state is not h11.IDLE:
            return False
        buffer = connection._receive_buffer  # h11 0.16 rejects such a line
        if buffer._data.startswith(b"\r\n"):
            buffer.maybe_extract_lines()  # removes only this line
        return bool(buffer._data == b"\r") and not connection.trailing_data[1]

    def has_begun(self) -> bool:
        """Return whether a request has arrived in part."""
        return self.connection.trailing_data[0] != b""

    def in_head(self) -> bool:
        """Return whether a request head has arrived in part."""
        return self.connection.their_state is h11.IDLE and self.has_begun()

    async def finish(self) -> None:
        """Finish the response to a client that has closed its side, as `nc -N` does.

        A disconnected client looks the same, so an event stream is closed.
        """
        if self.stream is not None:
            with trio.move_on_after(HALF_CLOSE_TIMEOUT) as self._half_closed:
                self._limit_half_closed()
                await self.wait_finished()

    async def wait_finished(self) -> None:
        """Wait until the response to the newest request is complete."""
        await self._finished.wait()

    def _limit_half_closed(self) -> None:
        if self._streams_events:
            self._half_closed.cancel()
        elif self._responding:  # sending detects a client that does not read
            self._half_closed.deadline = math.inf

    async def _while_connected(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for the application, and cancel everything if the client disconnects.

        Nothing is read during the wait, so a disconnect must be polled for.
        """
        while True:
            with trio.move_on_after(POLL_INTERVAL):
                await wait()
                return
            if self._peer.peer_has_left():
                self._cancel()

    async def _send_fast(self, answer: CachedResponse) -> bool:
        """Send a response to a request without a body. Return whether another request may follow."""
        connection = self.connection
        assert isinstance(connection.next_event(), h11.EndOfMessage)
        data = connection.send(self._head_of(answer))
        if answer.body:
            data += connection.send(h11.Data(data=answer.body))
        data += connection.send(h11.EndOfMessage())
        self._on_fast_response()
        try:
            sent = self._peer.transport.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the peer disconnected; the reader gets the error too
            return False
        if sent < len(data):
            await self.send(RawData(cast(bytes, memoryview(data)[sent:])))
        if connection.our_state is h11.MUST_CLOSE:
            await self.send(Closed())
            return False
        connection.start_next_cycle()
        return True

    def _head_of(self, answer: CachedResponse) -> h11.Response:
        """Return the head. h11 validates it at most once a second: each check takes a quarter of a response's time."""
        second = int(time.time())
        if answer.made is not None and answer.made[0] == second and not self.context.terminated.is_set():
            return cast(h11.Response, answer.made[1])
        headers = [*answer.headers, *self.config.response_headers("h11")]
        if self.context.terminated.is_set():
            headers.append(CLOSE)
        response = h11.Response(status_code=answer.status, headers=headers)
        answer.made = second, response
        return response

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Send the head of a response together with the next bytes."""
        if isinstance(event, h11.Response):
            content_type = header(event.headers, b"content-type")
            self._responding, self._streams_events = True, content_type == EVENT_STREAM
            self.takes_lines = content_type == NDJSON
            self._limit_half_closed()
            if self.connection.their_state is h11.SEND_BODY:
                await trio.lowlevel.checkpoint()  # let the reader read the arrived part of the body
            last = self._is_last() or self.context.terminated.is_set()
            headers = own_headers(event.headers)
            if last and CLOSE not in headers:
                headers = [*headers, CLOSE]
            if headers is not event.headers:
                event = h11.Response(status_code=event.status_code, headers=list(headers))
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
            return
        head, self._head = self._head, b""
        if head and len(head) + len(data) > MAX_SEND:  # a second copy would wait until the client reads
            await self.send(RawData(head))
            head = b""
        if head or data:
            await self.send(RawData(head + data))

    def _is_last(self) -> bool:
        """Return whether this request must be the last one (RFC 9112 §9.6, §11.2).

        It must be if its body is incomplete or more than an empty line follows: another parser may read that as body.
        """
        connection = self.connection
        return connection.their_state is h11.SEND_BODY or (
            self._has_body and connection.trailing_data[0] not in (b"", b"\r\n")
        )

    async def _maybe_recycle(self) -> None:
        """Replace Hypercorn's method, which drops a request that was read just before the daemon stopped.

        That request gets a response with `Connection: close`.
        """
        await self._close_stream()
        if self.connection.our_state is self.connection.their_state is h11.DONE:
            self.connection.start_next_cycle()
            await self.can_read.set()
            await self.send(Updated(idle=True))
        else:
            await self.can_read.set()
            await self.send(Closed())

    async def _close_stream(self) -> None:
        await super()._close_stream()
        self.takes_lines = False
        self._finished.set()

    async def _create_stream(self, request: h11.Request) -> None:
        self._responding = self._streams_events = False
        framing = {name for name, _ in request.headers} & {b"content-length", b"transfer-encoding"}
        self._has_body = bool(framing)
        if len(framing) > 1:  # the body has two lengths: RFC 9112 §6.1
            await self._reject(request)
            return
        if any(name == b"upgrade" for name, _ in request.headers):
            headers = [(name, value) for name, value in request.headers if name != b"connection"]
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        self._finished = trio.Event()
        await super()._create_stream(request)

    async def _reject(self, request: h11.Request) -> None:
        await self._send_error_response(400, head=request.method == b"HEAD")
        await self.send(Closed())

    async def _send_error_response(self, status_code: int, *, head: bool = False) -> None:
        reason = HTTPStatus(status_code).phrase.lower()
        body = encode({"error": f"this is not a valid HTTP/1.1 request: {reason}", "code": InvalidInput.code})
        headers = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]
        headers += [CLOSE, *self.config.response_headers("h11")]
        content = h11.Data(data=b"" if head else body)
        response = (h11.Response(status_code=status_code, headers=headers), content, h11.EndOfMessage())
        try:
            data = b"".join([self.connection.send(event) for event in response])
        except h11.LocalProtocolError:  # the application has begun its response to the previous request
            return
        await self.send(RawData(data))


def own_headers(headers: Sequence[tuple[bytes, bytes]]) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers of a response, in which a header of the application replaces that of `ALWAYS`."""
    if sum(name in REPLACEABLE for name, _ in headers) <= len(REPLACEABLE):
        return headers
    own: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in REPLACEABLE:
            own.setdefault(name, value)
    return [*(pair for pair in headers if pair[0] not in REPLACEABLE), *own.items()]


def with_path(request: h11.Request, base: BasePath) -> h11.Request | None:
    """Return the request with a path that starts with one slash, without the prefix `base`; None without such a path.

    Access checks and routes then see the same path (RFC 9112 §3.2).
    The authority of a target in absolute form replaces the Host header.
    """
    target, fields = request.target, None
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, target = absolute.groups()
        target = target if target.startswith(b"/") else b"/" + target
        fields = [(b"host", authority), *(field for field in request.headers if field[0] != b"host")]
    elif target == b"*" and request.method == b"OPTIONS":
        target = b"/"
    target = base.strip(target)
    path = unquote(target.partition(b"?")[0].decode("ascii"))
    if b"#" in target or not path.startswith("/") or path.startswith("//"):
        return None
    if target is request.target:
        return request
    headers = request.headers if fields is None else fields
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)
