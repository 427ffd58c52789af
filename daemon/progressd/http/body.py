"""Request bodies that are read as they arrive, and never pile up in memory.

Quart's own body takes in whatever the client sends, as fast as it comes: a fast upload to a slow disk would fill the
memory. Here no more is taken from the connection than the handler has read, so that TCP slows the client down.
"""

from traceback import clear_frames
from typing import Final

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from quart.wrappers.request import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioBody, TrioRequest

from progressd.config.settings import Limits
from progressd.core.errors import RequestTimeout, TooLarge
from progressd.core.sizes import readable_size

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class BackpressuredBody(TrioBody):
    """A body to iterate over; `room` opens when the last piece has been taken, or nobody wants any more of it."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(None, None)  # the limits depend on the route: see `pieces`
        self.room = trio.Event()
        self.wanted = True
        self.answered_meanwhile = False  # whoever sends the response reads on, and discards what is left

    async def __anext__(self) -> bytes:
        piece = await super().__anext__()
        self.room.set()
        self.room = trio.Event()
        return piece

    def discard(self) -> None:
        """Let go of what still comes."""
        self.wanted = False
        self.room.set()


class BackpressuredRequest(TrioRequest):
    """A request with a paced body."""

    body_class = BackpressuredBody


class BackpressuredConnection(TrioASGIHTTPConnection):
    """Takes a piece of the body from the connection when the one before has been read."""

    async def handle_messages(self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable) -> None:  # type: ignore[override]
        """Until the client disconnects, which cancels the request."""
        body = request.body
        assert isinstance(body, BackpressuredBody)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                nursery.cancel_scope.cancel()
                return
            assert message["type"] == "http.request"
            if not body.wanted:
                continue
            if message["body"]:
                body.append(message["body"])
            if not message["more_body"]:
                body.set_complete()
            elif message["body"]:
                await body.room.wait()

    async def handle_request(self, nursery: trio.Nursery, request: Request, send: ASGISendCallable) -> None:  # type: ignore[override]
        """Send the response, and discard what the handler has left of the body.

        Otherwise Hypercorn would wait forever for room to report the disconnect behind the body.
        """
        body = request.body
        assert isinstance(body, BackpressuredBody)
        if request.method in SAFE:  # their bodies mean nothing (RFC 9110 §9.3.1), and would hide the client's end
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
            request.routing_exception = None  # its traceback leads to the request


def _break_cycles(error: BaseException | None) -> None:
    """Clear the frames of an error and of those before it: contextlib's refer to the error whose traceback has them."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


class BodyChunks:
    """The body of a request, piece by piece.

    Raises TooLarge past `most` bytes, and Stalled when none come for `limits.idle_timeout`, or, unless the client may
    take its time, when fewer have come than `limits.min_body_rate` asks for. Only waiting for the client counts.
    """

    def __init__(self, request: Request, limits: Limits, most: float, *, in_its_time: bool = False) -> None:
        if (request.content_length or 0) > most:
            raise TooLarge(_too_large(most))
        assert isinstance(request.body, BackpressuredBody)
        self._body = request.body
        self._most = most
        self._stall = limits.idle_timeout
        self._rate = 0 if in_its_time else limits.min_body_rate
        self._size = 0
        self._waited = 0.0  # seconds

    def __aiter__(self) -> "BodyChunks":
        return self

    async def __anext__(self) -> bytes:
        left = self._stall + self._size / self._rate - self._waited if self._rate else self._stall
        began = trio.current_time()
        with trio.move_on_after(max(0, min(self._stall, left))) as late:
            piece = await anext(self._body)
        if late.cancelled_caught:
            if left < self._stall:
                rate = readable_size(self._rate)
                raise RequestTimeout(f"the request came too slowly: send at least {rate} per second on average")
            raise RequestTimeout(f"the request stopped: nothing arrived for {self._stall:g} s")
        self._waited += trio.current_time() - began
        self._size += len(piece)
        if self._size > self._most:
            raise TooLarge(_too_large(self._most))
        return piece

    def read_on(self) -> None:
        """The body goes on while the response is sent, until `discard`, before the end of that."""
        self._body.answered_meanwhile = True

    def discard(self) -> None:
        """Let go of what still comes."""
        self._body.discard()


def _too_large(most: float) -> str:
    return f"the request is too large: its body may have at most {readable_size(int(most))}"


async def whole_body(request: Request, limits: Limits, most: int = 1024 * 1024) -> bytes:
    """A small body at once. Raises like BodyChunks."""
    return b"".join([piece async for piece in BodyChunks(request, limits, most)])
