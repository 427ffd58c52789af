"""gzip where it pays: whole answers of text that are longer than what one packet takes anyway (RFC 9110 §8.4.1.3)."""

import gzip
from functools import lru_cache
from typing import Final

import trio
from quart import Response
from quart.wrappers import Request
from quart.wrappers.response import DataBody
from werkzeug.http import parse_accept_header

MIN_BYTES: Final = 1400  # bytes; a shorter answer is one packet, compressed or not
MAX_INLINE_BYTES: Final = 65536  # bytes that are compressed in the event loop, in a millisecond; more are in a thread
LEVEL: Final = 3
MAX_ACCEPT_ENCODING: Final = (
    200  # characters of an Accept-Encoding; to read one of 15,000 takes 30 ms, and browsers send 23
)
TEXT: Final = frozenset({"application/json", "application/openmetrics-text", "text/html", "text/plain"})


def takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding allows it (RFC 9110 §12.5.3); one that is too long allows nothing."""
    return len(accepted) <= MAX_ACCEPT_ENCODING and _takes_gzip(accepted)


@lru_cache(64)
def _takes_gzip(accepted: str) -> bool:
    return bool(parse_accept_header(accepted)["gzip"])


def gzipped(body: bytes) -> bytes:
    """The same for the same body."""
    return gzip.compress(body, LEVEL, mtime=0)


async def compressed(request: Request, response: Response) -> Response:
    """The response, compressed if the client takes it and it pays."""
    body = response.response
    if response.mimetype not in TEXT or not isinstance(body, DataBody) or response.content_encoding:
        return response
    response.vary.add("Accept-Encoding")
    if (
        len(body.data) < MIN_BYTES
        or response.status_code != 200
        or not takes_gzip(request.headers.get("Accept-Encoding", ""))
    ):
        return response
    at_once = len(body.data) <= MAX_INLINE_BYTES
    response.set_data(gzipped(body.data) if at_once else await trio.to_thread.run_sync(gzipped, body.data))
    response.content_encoding = "gzip"
    etag, weak = response.get_etag()
    if etag is not None and not weak:
        response.set_etag(etag, weak=True)  # the same job, in other bytes
    return response
