"""One HTTP connection's side of the seam to Hypercorn: h11 reads the requests, and an answer leaves in one write.

Checked with Hypercorn 0.17.3 and 0.18.0, whose `H11Protocol` this is. Of what a request costs there, a quarter is h11;
the rest are tasks, channels and locks around an application that may take long, and a direct answer takes none of them.
"""

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from traceback import clear_frames
from typing import Any, Final, cast

import h11
import trio
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.typing import H11SendableEvent

from progressd.core.messages import encode
from progressd.http.middleware.fast_job_read import FastJobReads
from progressd.http.middleware.job_cache import CachedResponse
from progressd.http.openapi.operations import EVENTS, LINES
from progressd.http.server.request_target import with_path
from progressd.net.base_path import BasePath
from progressd.net.headers import header

AFTER_END: Final = 2.0  # seconds in which a client that sends no more must have the beginning of its answer
MAX_SEND: Final = 65536  # bytes of an answer that are one write at most
POLL_INTERVAL: Final = 1.0  # seconds after which it is looked whether a client is still there that has to wait


class Protocol(H11Protocol):
    """HTTP/1.1 and nothing else, neither HTTP/2 nor Hypercorn's own WebSockets; its errors are JSON like all others."""

    base: BasePath
    direct: FastJobReads
    on_answer: Callable[[], None]
    gone: Callable[[], bool]  # whether the client has left, be it behind bytes that nobody has read
    give_up: Callable[[], None]  # cancels everything that is done for the client
    send_now: Callable[[bytes], int]  # of the non-blocking socket: writes what there is room for, at once

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests = 0  # whose heads have come
        self._head = b""  # of a response, which waits for what follows
        self._over = trio.Event()  # the newest request is done with
        self._has_body = False  # as its head says, be it an empty one
        self._answering = False  # a response to it has begun
        self._lasting = False  # which goes on for as long as the client is there
        self.takes_lines = False  # and answers lines while more of them come
        self._ending = trio.CancelScope()

    async def _handle_events(self) -> None:
        """As Hypercorn's, but for direct answers; there is nothing but HTTP/1.1 here."""
        answered = False
        while True:
            if self.connection.they_are_waiting_for_100_continue:
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            if self.connection.their_state is h11.MUST_CLOSE and self.has_begun():
                await self._unless_gone(self._over.wait)  # what follows the last request is for nobody
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
                self.requests += 1
                request = with_path(event, self.base)
                if request is None:
                    await self._refuse(event)
                    return
                if answered:  # many requests in one piece must not hold up the others
                    await trio.lowlevel.checkpoint()
                answer = None
                if request.http_version == b"1.1":
                    answer = self.direct.answer(request.method, request.target, request.headers, self.client)
                if answer is not None:
                    answered = True
                    if await self._answer(answer):
                        continue
                    return
                await self.send(Updated(idle=False))
                await self._create_stream(request)
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self._unless_gone(self.can_read.wait)
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA or self.stream is None:
                return
            elif isinstance(event, h11.Data):
                body = Body(stream_id=STREAM_ID, data=event.data)
                await self._unless_gone(partial(self.stream.handle, body))
            elif isinstance(event, h11.EndOfMessage):
                await self._unless_gone(partial(self.stream.handle, EndBody(stream_id=STREAM_ID)))

    def _is_in_empty_line(self) -> bool:
        """Skip an empty line before a later request (RFC 9112 §2.2), or return whether half of one has come.

        `Connection.read_head` does this for the first request.
        """
        connection: Any = self.connection
        if connection.their_state is not h11.IDLE:
            return False
        buffer = connection._receive_buffer  # h11 0.16 rejects such a line
        if buffer._data.startswith(b"\r\n"):
            buffer.maybe_extract_lines()  # this line, and nothing else
        return bool(buffer._data == b"\r") and not connection.trailing_data[1]

    def has_begun(self) -> bool:
        """Whether a part of a request has come, and its rest has not."""
        return self.connection.trailing_data[0] != b""

    def in_head(self) -> bool:
        """Whether it is its head that has come in part."""
        return self.connection.their_state is h11.IDLE and self.has_begun()

    async def finish(self) -> None:
        """The client sends no more, as `nc -N` does, or has left, which looks the same: answer what it has asked.

        Not if that lasts: then it is taken for gone.
        """
        if self.stream is not None:
            with trio.move_on_after(AFTER_END) as self._ending:
                self._bound_the_end()
                await self._over.wait()

    def _bound_the_end(self) -> None:
        if self._lasting:
            self._ending.cancel()
        elif self._answering:  # a client that does not take it is found out by sending
            self._ending.deadline = math.inf

    async def _unless_gone(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for the application, which may take long, as while it streams events, or wants no body.

        Nothing is read meanwhile, not even the client's end.
        """
        while True:
            with trio.move_on_after(POLL_INTERVAL):
                await wait()
                return
            if self.gone():
                self.give_up()

    async def _answer(self, answer: CachedResponse) -> bool:
        """Answer a request that has no body; whether another may follow."""
        connection = self.connection
        assert isinstance(connection.next_event(), h11.EndOfMessage)
        data = connection.send(self._response(answer))
        if answer.body:
            data += connection.send(h11.Data(data=answer.body))
        data += connection.send(h11.EndOfMessage())
        self.on_answer()
        try:
            sent = self.send_now(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the peer is gone, which the reader finds out
            return False
        if sent < len(data):
            await self.send(RawData(cast(bytes, memoryview(data)[sent:])))
        if connection.our_state is h11.MUST_CLOSE:
            await self.send(Closed())
            return False
        connection.start_next_cycle()
        return True

    def _response(self, answer: CachedResponse) -> h11.Response:
        """The head, checked by h11 once a second however often it is sent: that takes a quarter of an answer's time."""
        second = int(time.time())
        if answer.made is not None and answer.made[0] == second and not self.context.terminated.is_set():
            return cast(h11.Response, answer.made[1])
        headers = [*answer.headers, *self.config.response_headers("h11")]
        if self.context.terminated.is_set():
            headers.append((b"connection", b"close"))
        response = h11.Response(status_code=answer.status, headers=headers)
        answer.made = second, response
        return response

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """The head of a response leaves with what follows it."""
        if isinstance(event, h11.Response):
            kind = header(event.headers, b"content-type")
            self._answering, self._lasting, self.takes_lines = True, kind == EVENTS, kind == LINES
            self._bound_the_end()
            if self.connection.their_state is h11.SEND_BODY:
                await trio.lowlevel.checkpoint()  # what there is of the request's body is read
            last = self._is_last() or self.context.terminated.is_set()
            if last and (b"connection", b"close") not in event.headers:
                event = h11.Response(status_code=event.status_code, headers=[*event.headers, (b"connection", b"close")])
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
        if head and len(head) + len(data) > MAX_SEND:  # a second copy would wait as long as the client does not read
            await self.send(RawData(head))
            head = b""
        if head or data:
            await self.send(RawData(head + data))

    def _is_last(self) -> bool:
        """Whether no other request may follow this one (RFC 9112 §9.6, §11.2).

        It has not come whole, or more than an empty line stands already behind its body, which another parser may
        count to that.
        """
        connection = self.connection
        return connection.their_state is h11.SEND_BODY or (
            self._has_body and connection.trailing_data[0] not in (b"", b"\r\n")
        )

    async def _check_protocol(self, event: h11.Request) -> None:
        """There is nothing to switch to."""

    async def _maybe_recycle(self) -> None:
        """As Hypercorn's, but without its loss of the next request, already read, when the daemon stops.

        That request is answered with `Connection: close`. Without one, the idle timeout closes the connection.
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
        self._over.set()
        self.takes_lines = False

    async def _create_stream(self, request: h11.Request) -> None:
        self._over, self._answering, self._lasting = trio.Event(), False, False
        framing = {name for name, _ in request.headers} & {b"content-length", b"transfer-encoding"}
        self._has_body = bool(framing)
        if len(framing) > 1:  # two ends of the body: RFC 9112 §6.1
            await self._refuse(request)
            return
        if any(name == b"upgrade" for name, _ in request.headers):
            headers = [(name, value) for name, value in request.headers if name != b"connection"]
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _refuse(self, request: h11.Request) -> None:
        await self._send_error_response(400, head=request.method == b"HEAD")
        await self.send(Closed())

    async def _send_error_response(self, status_code: int, *, head: bool = False) -> None:
        reason = HTTPStatus(status_code).phrase.lower()
        body = encode({"error": f"this is not a request in HTTP/1.1 that can be served: {reason}"})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(b"connection", b"close"), *self.config.response_headers("h11")]
        content = h11.Data(data=b"" if head else body)
        answer = (h11.Response(status_code=status_code, headers=headers), content, h11.EndOfMessage())
        try:
            data = b"".join([self.connection.send(event) for event in answer])
        except h11.LocalProtocolError:  # the application has begun to answer what came before
            return
        await self.send(RawData(data))
