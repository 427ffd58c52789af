"""Request bodies with backpressure, and multipart forms with files (RFC 7578), which go to disk as they arrive.

Quart's own body buffers everything the client sends: a fast upload to a slow disk would fill the memory. This one reads
a chunk from the connection once the handler has read the previous chunk, so that TCP slows the client down.
"""

import logging
import math
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from traceback import clear_frames
from typing import Any, Final, Protocol, cast

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from quart.wrappers.request import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioRequest
from werkzeug.http import parse_options_header

from progressd.config.settings import Limits
from progressd.core.errors import InvalidInput, RequestTimeout, TooLarge, readable_size
from progressd.files.job_files import Upload

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OVERHEAD: Final = 1024 * 1024  # bytes of a form besides its files and fields
MAX_HEADER: Final = 4096  # bytes of a part's header
FROM_FILES: Final = ("options", "labels")  # fields that may be sent as a file, as with `curl -F options=@o.json`
DISPOSITION: Final = b"content-disposition"
EVENTS: Final = ("header_field", "header_value", "header_end", "headers_finished", "part_data", "part_end", "end")

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client receives its warnings as an error


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
        """Return for how many seconds the client has sent nothing, or how far it is behind the required rate.

        Return 0 unless the daemon waits for the client.
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


class FormSink(Protocol):
    """Receive the files of a form, one after the other."""

    async def begin(self, filename: str) -> Upload:
        """Begin a file."""

    async def whole(self) -> None:
        """Finish the file, after its last byte."""


def form_body(request: Request, limits: Limits, max_files: int) -> BodyChunks:
    """Return the body of a request with a form. Raises InvalidInput, TooLarge."""
    if request.mimetype != "multipart/form-data" or not request.mimetype_params.get("boundary"):
        raise InvalidInput("the body is not a form: send it as multipart/form-data, with a boundary")
    max_bytes = max_files * limits.max_upload_bytes + limits.max_form_fields * limits.max_form_field_bytes + OVERHEAD
    if (request.content_length or 0) > max_bytes:
        files = "the file is" if max_files == 1 else "the files together are"
        raise TooLarge(f"{files} larger than {readable_size(max_files * limits.max_upload_bytes)}, the limit")
    return BodyChunks(request, limits, max_bytes)


async def receive_form(
    request: Request, body: BodyChunks, sink: FormSink, file_fields: Collection[str], limits: Limits, max_files: int
) -> dict[str, str]:
    """Pass the files to `sink`. Return the remaining fields. Raises InvalidInput, TooLarge, RequestTimeout."""
    try:
        reader = FormReader(request.mimetype_params["boundary"], sink, file_fields, limits, max_files)
        async for piece in body:
            await reader.feed(piece)
        if not reader.ended:
            raise ValueError("cut off")
    except ValueError:
        raise InvalidInput("the form is malformed or was cut off: send it again") from None
    if not reader.files:
        raise InvalidInput(f"the form has no file: send one in the field {next(iter(file_fields))}")
    return {name: value.decode(errors="replace") for name, value in reader.fields.items()}


def printable_name(filename: str) -> str:
    """Return a file's name for an error: at most 60 characters, all printable."""
    return "".join(letter if letter.isprintable() else "_" for letter in filename[:60])


def _note(events: list[tuple[str, bytes]], event: str, data: bytes = b"", start: int = 0, end: int = 0) -> None:
    """Keep an event of the parser. A method of the reader would be a reference cycle."""
    events.append((event, data[start:end]))


class FormReader:
    """Read the parts of a form from the chunks of a body."""

    def __init__(
        self, boundary: str, sink: FormSink, file_fields: Collection[str], limits: Limits, max_files: int
    ) -> None:
        """Raise ValueError for an overlong boundary."""
        self.ended = False
        self.files = 0
        self.fields: dict[str, bytes] = {}
        self._sink = sink
        self._file_fields = file_fields
        self._limits = limits
        self._max_files = max_files
        self._parts = 0
        self._header, self._disposition = b"", b""
        self._field: str | None = None  # the field name of the current part; None for a file
        self._file: Upload | None = None  # the current part; None for a field
        self._filename = ""
        self._size = 0  # bytes of that file
        self._events = list[tuple[str, bytes]]()  # parser events of the current chunk
        callbacks = {f"on_{event}": partial(_note, self._events, event) for event in EVENTS}
        self._parser = MultipartParser(boundary.encode(), cast(Any, callbacks), max_header_size=MAX_HEADER)

    async def feed(self, piece: bytes) -> None:
        """Read the next chunk of the body. Raises ValueError if it is malformed, InvalidInput, TooLarge."""
        self._events.clear()
        try:
            self._parser.write(piece)
        except MultipartParseError as error:
            if "exceeded" not in str(error):
                raise
            size = readable_size(MAX_HEADER)
            raise TooLarge(f"a part of the form has more than 8 headers, or one larger than {size}") from error
        for event, data in self._events:
            match event:
                case "header_field" | "header_value":
                    self._header += data
                case "header_end":
                    if self._header.lower().startswith(DISPOSITION):
                        self._disposition = self._header[len(DISPOSITION) :]
                    self._header = b""
                case "headers_finished":
                    await self._begin_part()
                    await trio.lowlevel.checkpoint()  # one chunk may have many parts
                case "part_data":
                    await self._add(data)
                case "part_end" if self._file is not None:
                    await self._sink.whole()
                case "end":
                    self.ended = True

    async def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > self._limits.max_form_fields + self._max_files:
            raise TooLarge("the form has too many fields besides the file")
        _, parameters = parse_options_header(self._disposition.decode())
        name, filename = parameters.get("name", ""), parameters.get("filename")
        self._disposition = b""
        self._file = self._field = None
        if filename and name in self._file_fields:
            self.files += 1
            if self.files > self._max_files == 1:
                raise InvalidInput("the form has several files: send only one here, or all of them to /api/batch")
            if self.files > self._max_files:
                raise TooLarge(f"the batch has too many files: send at most {self._max_files} together")
            self._filename, self._size = filename, 0
            self._file = await self._sink.begin(filename)
        elif filename is None or name in FROM_FILES:
            self._field = name

    async def _add(self, data: bytes) -> None:
        if self._file is not None:
            self._size += len(data)
            if self._size > (limit := self._limits.max_upload_bytes):
                raise TooLarge(f"{printable_name(self._filename)} is larger than {readable_size(limit)}, the limit")
            await self._file.write(data)
        elif self._field is not None:
            value = self.fields.get(self._field, b"") + data
            if len(value) > (limit := self._limits.max_form_field_bytes):
                raise TooLarge(f"the field {self._field[:60]!r} is larger than {readable_size(limit)}")
            self.fields[self._field] = value
