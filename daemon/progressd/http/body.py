"""Request bodies with backpressure, and the limits of uploads.

Quart's own body buffers everything the client sends: a fast upload to a slow disk would fill the memory. This one reads
a chunk from the connection once the handler has read the previous chunk, so that TCP slows the client down.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from traceback import clear_frames
from typing import Final, NamedTuple

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from quart.wrappers.request import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioRequest

from progressd.config.settings import Limits
from progressd.core.errors import RequestTimeout, TooLarge, TooManyUploads, readable_size

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
STALL_TIMEOUT: Final = 5.0  # seconds of delay after which a new upload can replace an upload


class BackpressuredBody:
    """An iterable body: each chunk is passed on when the handler requests it.

    Quart's own bodies differ between the versions for Python 3.11 and 3.13, and buffer all received data.
    """

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        """Accept Quart's arguments. Quart's limits apply to all routes; `BodyChunks` has the limits of each route."""
        self._send, self._receive = trio.open_memory_channel[bytes](0)
        self.answered_meanwhile = False  # the route that sends the response discards the rest of the body

    def __aiter__(self) -> "BackpressuredBody":
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._receive)

    async def put(self, piece: bytes) -> None:
        """Wait until the handler has taken the chunk, or needs no further chunks."""
        with suppress(trio.BrokenResourceError):
            await self._send.send(piece)

    def set_complete(self) -> None:
        """End the iteration."""
        self._send.close()

    def discard(self) -> None:
        """Discard the rest of the body."""
        self._receive.close()


class BackpressuredRequest(TrioRequest):
    """A request with a BackpressuredBody."""

    body_class = BackpressuredBody  # type: ignore[assignment]


def _body(request: Request) -> BackpressuredBody:
    body: object = request.body
    assert isinstance(body, BackpressuredBody)
    return body


class BackpressuredConnection(TrioASGIHTTPConnection):
    """Read a chunk of the body from the connection when the previous one has been consumed."""

    async def handle_messages(self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable) -> None:  # type: ignore[override]
        """Receive the body until the client disconnects, which cancels the request."""
        body = _body(request)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                nursery.cancel_scope.cancel()
                return
            assert message["type"] == "http.request"
            if message["body"]:
                await body.put(message["body"])
            if not message["more_body"]:
                body.set_complete()

    async def handle_request(self, nursery: trio.Nursery, request: Request, send: ASGISendCallable) -> None:  # type: ignore[override]
        """Send the response, and discard the rest of the body.

        Otherwise Hypercorn would wait forever to report the disconnect after the body.
        """
        body = _body(request)
        if request.method in SAFE:  # their bodies have no meaning (RFC 9110 §9.3.1), and would hide a disconnect
            body.discard()

        async def send_response(message: ASGISendEvent) -> None:
            if not body.answered_meanwhile:
                body.discard()
            await send(message)

        try:
            await super().handle_request(nursery, request, send_response)
        except BaseException as error:
            _break_cycles(error)
            raise
        finally:
            request.routing_exception = None  # its traceback refers to the request


def _break_cycles(error: BaseException | None) -> None:
    """Clear the frames of an error and of its contexts: contextlib's frames refer to the error with their traceback."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


class BodyChunks:
    """The body of a request, chunk by chunk.

    Raises TooLarge above `max_bytes`. Raises RequestTimeout when nothing arrives for `limits.idle_timeout`, or, unless
    `any_rate`, when fewer bytes arrive than `limits.min_body_rate`. Only the time spent waiting for the client counts.
    """

    def __init__(self, request: Request, limits: Limits, max_bytes: float, *, any_rate: bool = False) -> None:
        if (request.content_length or 0) > max_bytes:
            raise TooLarge(_too_large(max_bytes))
        self._body = _body(request)
        self._length = request.content_length
        self._max_bytes = max_bytes
        self._stall = limits.idle_timeout
        self._rate = 0 if any_rate else limits.min_body_rate
        self._size = 0  # bytes received
        self._waited = 0.0  # seconds spent waiting for these bytes
        self._waiting_since = math.inf

    def __aiter__(self) -> "BodyChunks":
        return self

    async def __anext__(self) -> bytes:
        left = self._stall + self._size / self._rate - self._waited if self._rate else self._stall
        began = self._waiting_since = trio.current_time()
        try:
            with trio.move_on_after(max(0, min(self._stall, left))) as late:
                piece = await anext(self._body)
        finally:
            self._waiting_since = math.inf
        if late.cancelled_caught:
            if left < self._stall:
                rate = readable_size(self._rate)
                raise RequestTimeout(f"the body arrived too slowly: send at least {rate} per second on average")
            raise RequestTimeout(f"the body stopped: nothing arrived for {self._stall:g} s")
        self._waited += trio.current_time() - began
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise TooLarge(_too_large(self._max_bytes))
        return piece

    @property
    def whole(self) -> bool:
        """Return whether all bytes that Content-Length announced were received. False for chunked bodies."""
        return self._size == self._length

    def behind(self) -> float:
        """Return for how many seconds the client has sent nothing, or its delay at the required rate.

        0 unless the daemon waits for the client.
        """
        silent = trio.current_time() - self._waiting_since
        if silent < 0:
            return 0.0
        return max(silent, self._waited + silent - self._size / self._rate) if self._rate else silent

    def read_on(self) -> None:
        """Continue reading while the response is sent, until `discard`. Call that before the response ends."""
        self._body.answered_meanwhile = True

    def discard(self) -> None:
        """Discard the rest of the body."""
        self._body.discard()


def _too_large(max_bytes: float) -> str:
    return f"the body is larger than {readable_size(int(max_bytes))}, the limit"


async def whole_body(request: Request, limits: Limits, max_bytes: int = 1024 * 1024) -> bytes:
    """Return a small body. Raises the errors of BodyChunks."""
    return b"".join([piece async for piece in BodyChunks(request, limits, max_bytes)])


class Upload(NamedTuple):
    """A request that uploads files, and the scope that cancels it."""

    client: str
    body: BodyChunks
    scope: trio.CancelScope


class Transfers:
    """The uploads and downloads in progress: limit them, cancel a stalled upload for a new one, delay a shutdown."""

    def __init__(self) -> None:
        self.ends = set[trio.Event]()  # an event for each transfer in progress, set when the transfer ends
        self.uploads = list[Upload]()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Register a transfer inside the block."""
        ended = trio.Event()
        self.ends.add(ended)
        try:
            yield
        finally:
            self.ends.discard(ended)
            ended.set()

    @contextmanager
    def uploading(self, client: str, body: BodyChunks, limits: Limits, *, exempt: bool) -> Iterator[None]:
        """Register an upload inside the block. Raises TooManyUploads, and RequestTimeout if a new upload replaced it.

        A client that is `exempt` from the limit per address leaves a quarter of the slots to other clients.
        """
        max_uploads = limits.max_uploads
        share = max_uploads - max_uploads // 4 if exempt else limits.max_uploads_per_address
        own = [upload for upload in self.uploads if upload.client == client]
        if len(own) >= share:
            self._make_room(own, TooManyUploads(f"this client already has {share} uploads in progress"))
        if len(self.uploads) >= max_uploads:
            self._make_room(self.uploads, TooManyUploads(f"{max_uploads} uploads are already in progress"))
        upload = Upload(client, body, trio.CancelScope())
        self.uploads.append(upload)
        try:
            with self.active(), upload.scope:
                yield
        finally:
            self._remove(upload)
        if upload.scope.cancelled_caught:
            raise RequestTimeout("the body arrived too slowly and made room for another upload")

    def _make_room(self, uploads: list[Upload], error: TooManyUploads) -> None:
        """Cancel the upload that is furthest behind. Raises the error if no upload is."""
        slowest = max(uploads, key=lambda upload: upload.body.behind())
        if slowest.body.behind() < STALL_TIMEOUT:
            raise error
        self._remove(slowest)
        slowest.scope.cancel()

    def _remove(self, upload: Upload) -> None:
        if upload in self.uploads:
            self.uploads.remove(upload)
