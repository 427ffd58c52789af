"""Responses: JSON, compressed text, files and their ranges, and responses without a route."""

import gzip
import unicodedata
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import msgspec
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.wrappers import Request, Response
from quart.wrappers.response import DataBody
from quart_trio.wrappers.response import TrioFileBody, TrioResponse
from werkzeug.exceptions import RequestedRangeNotSatisfiable

MIN_GZIP_BYTES: Final = 1400  # a shorter response is one packet, compressed or not
MAX_INLINE_BYTES: Final = 65536  # compressed in the event loop, in a millisecond; a larger body in a thread
LEVEL: Final = 3
MAX_ACCEPT_ENCODING: Final = 200  # characters: browsers send 23, and parsing 15,000 takes 30 ms
TEXT: Final = frozenset({"application/json", "application/openmetrics-text", "text/html", "text/plain"})

_encode = msgspec.json.Encoder().encode


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    return Response(_encode(body), status, headers, content_type="application/json")


async def respond(
    receive: ASGIReceiveCallable, send: ASGISendCallable, status: int, fields: Mapping[str, str], body: bytes = b""
) -> None:
    """Send a whole response and discard the request's body: Hypercorn does not finish a request with an unread body."""
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_discard, receive)
        await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})
        nursery.cancel_scope.cancel()


async def _discard(receive: ASGIReceiveCallable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def compressed(request: Request, response: Response) -> Response:
    """Return the response, compressed with gzip if the client accepts that and the response is long enough."""
    body = response.response
    if response.mimetype not in TEXT or not isinstance(body, DataBody) or response.content_encoding:
        return response
    response.vary.add("Accept-Encoding")
    if len(body.data) < MIN_GZIP_BYTES or response.status_code != 200 or not _accepts_gzip(request):
        return response
    inline = len(body.data) <= MAX_INLINE_BYTES
    response.set_data(_gzipped(body.data) if inline else await trio.to_thread.run_sync(_gzipped, body.data))
    response.content_encoding = "gzip"
    etag, weak = response.get_etag()
    if etag is not None and not weak:
        response.set_etag(etag, weak=True)  # the same content, encoded differently
    return response


def _accepts_gzip(request: Request) -> bool:
    """Return whether the client accepts gzip (RFC 9110 §12.5.3)."""
    short = len(request.headers.get("Accept-Encoding", "")) <= MAX_ACCEPT_ENCODING
    return short and bool(request.accept_encodings["gzip"])


def _gzipped(body: bytes) -> bytes:
    return gzip.compress(body, LEVEL, mtime=0)


class FileBody(TrioFileBody):
    """A file body that supports suffix ranges (`bytes=-7`) and ranges past the end. Quart-Trio's body does not."""

    buffer_size = 64 * 1024  # bytes per read, in a thread: with 8 KiB a download takes four times as long

    async def require_opens(self) -> None:
        """Open the file now, and raise its OSError while the status can still change."""
        await trio.to_thread.run_sync(lambda: open(self.file_path, "rb").close())

    async def __aenter__(self) -> "FileBody":
        self.file = await trio.open_file(self.file_path, mode="rb")
        self.file.wrapped.seek(self.begin)  # not in a thread: if that is cancelled, the file stays open
        return self

    async def make_conditional(self, begin: int, end: int | None, max_partial_size: int | None = None) -> int:
        """Select a range; a negative `begin` counts from the end. Returns the size of the whole file."""
        self.begin, self.end = _range(self.size, begin, end)
        return self.size

    def leave_out(self) -> None:
        """Send nothing, for HEAD."""
        self.end = self.begin


class TextBody(DataBody):
    """A body in memory that supports the same ranges."""

    async def make_conditional(self, begin: int, end: int | None, max_partial_size: int | None = None) -> int:
        """Select a range. Returns the size of the whole body."""
        self.begin, self.end = _range(len(self.data), begin, end)
        return len(self.data)


def _range(size: int, begin: int, end: int | None) -> tuple[int, int]:
    """Return a range within a body. Raises RequestedRangeNotSatisfiable."""
    begin = max(0, size + begin) if begin < 0 else begin
    end = size if end is None else min(end, size)
    if begin >= end:
        raise RequestedRangeNotSatisfiable(size)
    return begin, end


class FileResponse(TrioResponse):
    """A response of `send_file`."""

    file_body_class = FileBody

    async def make_conditional(
        self, request: Request, accept_ranges: bool | str = False, complete_length: int | None = None
    ) -> Response:
        """Apply a range. Ignore invalid or multiple ranges, and those not on GET (§14.2). Quart would return 416."""
        range_ = request.range if request.method == "GET" else None
        if range_ is None or range_.units != "bytes" or len(range_.ranges) != 1:
            complete_length = None  # makes Quart ignore the range
        return await super().make_conditional(request, accept_ranges, complete_length)


def attachment(name: str) -> str:
    """Return the Content-Disposition of a file with a printable name (RFC 6266).

    A name that old clients misread gets an ASCII fallback.
    """
    base = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%/' else "_" for letter in base)
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='!#$&+^`|')}"
