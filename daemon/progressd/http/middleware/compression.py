"""Compress text responses that are longer than one packet, with gzip (RFC 9110 §8.4.1.3)."""

import gzip
from functools import lru_cache
from typing import Final

import trio
from quart import Response
from quart.wrappers import Request
from quart.wrappers.response import DataBody
from werkzeug.http import parse_accept_header

MIN_BYTES: Final = 1400  # a shorter response is one packet, compressed or not
MAX_INLINE_BYTES: Final = 65536  # compressed in the event loop, in a millisecond; a larger body in a thread
LEVEL: Final = 3
MAX_ACCEPT_ENCODING: Final = 200  # characters: browsers send 23, and parsing 15,000 takes 30 ms
TEXT: Final = frozenset({"application/json", "application/openmetrics-text", "text/html", "text/plain"})


def accepts_gzip(accepted: str) -> bool:
    """Return whether an Accept-Encoding allows gzip (RFC 9110 §12.5.3). An overlong header does not."""
    return len(accepted) <= MAX_ACCEPT_ENCODING and _accepts_gzip(accepted)


@lru_cache(64)
def _accepts_gzip(accepted: str) -> bool:
    return bool(parse_accept_header(accepted)["gzip"])


def gzipped(body: bytes) -> bytes:
    """Compress a body; the result depends only on the body."""
    return gzip.compress(body, LEVEL, mtime=0)


async def compressed(request: Request, response: Response) -> Response:
    """Return the response, compressed if the client accepts gzip and the response is long enough."""
    body = response.response
    if response.mimetype not in TEXT or not isinstance(body, DataBody) or response.content_encoding:
        return response
    response.vary.add("Accept-Encoding")
    if (
        len(body.data) < MIN_BYTES
        or response.status_code != 200
        or not accepts_gzip(request.headers.get("Accept-Encoding", ""))
    ):
        return response
    inline = len(body.data) <= MAX_INLINE_BYTES
    response.set_data(gzipped(body.data) if inline else await trio.to_thread.run_sync(gzipped, body.data))
    response.content_encoding = "gzip"
    etag, weak = response.get_etag()
    if etag is not None and not weak:
        response.set_etag(etag, weak=True)  # the same content, encoded differently
    return response
