"""Cache the responses to reads of jobs: encode each once for all clients, until the job changes."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from progressd import __version__
from progressd.core.job import Job
from progressd.http.middleware.compression import MAX_INLINE_BYTES, MIN_BYTES, accepts_gzip, gzipped
from progressd.http.schemas.views import job_view
from progressd.net.request import BasePath

MAX_ENTRIES: Final = 4096  # jobs, about 1.5 KiB each
MAX_BYTES: Final = 16 * 1024 * 1024  # total size of the bodies
CACHING: Final = "private, no-cache"  # cache it, and revalidate each time

Headers = Sequence[tuple[bytes, bytes]]
_encode = msgspec.json.Encoder().encode


class CachedResponse:
    """A whole HTTP response; header names are in lower case."""

    __slots__ = ("body", "headers", "made", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.made: tuple[int, object] | None = None  # for the protocol: the second, and the head built then

    def with_headers(self, headers: Headers) -> "CachedResponse":
        """Return the same response with additional headers."""
        return CachedResponse(self.status, (*self.headers, *headers), self.body) if headers else self


@dataclass(slots=True)
class _Entry:
    offset: int  # offset of the job, which changes with every change of the job
    etag: bytes
    whole: CachedResponse
    not_modified: CachedResponse
    gzipped: CachedResponse | None = None  # created for the first client that accepts gzip

    @property
    def size(self) -> int:
        """Return the size of the bodies in bytes."""
        return len(self.whole.body) + (len(self.gzipped.body) if self.gzipped else 0)


class JobResponseCache:
    """The responses for jobs in their current state. New entries replace the oldest."""

    def __init__(self, store_id: str, base: BasePath) -> None:
        self._store_id = store_id
        self._base = base
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def answer(self, job: Job, if_none_match: bytes | None, accept_encoding: bytes = b"") -> CachedResponse:
        """Return the job, or 304 if the client has it already (RFC 9110 §13.1.2).

        The response is compressed if that saves a packet and is fast.
        """
        entry = self._entries.get(job.id)
        if entry is None or entry.offset != job.offset:
            entry = self._add(job)
        if if_none_match is not None and _matches(if_none_match, entry.etag):
            return entry.not_modified
        if MIN_BYTES <= len(entry.whole.body) <= MAX_INLINE_BYTES and accepts_gzip(accept_encoding.decode("latin-1")):
            return entry.gzipped or self._compress(entry)
        return entry.whole

    def _add(self, job: Job) -> _Entry:
        view = job_view(job, self._store_id, self._base)
        etag = f'"{view.cursor}.{__version__}{self._base.text}"'.encode()  # another version may add fields
        entry = _Entry(job.offset, etag, _whole(_encode(view), etag), CachedResponse(304, _headers(etag), b""))
        if (before := self._entries.pop(job.id, None)) is not None:
            self._bytes -= before.size
        self._entries[job.id] = entry
        self._bytes += entry.size
        self._evict()
        return entry

    def _compress(self, entry: _Entry) -> CachedResponse:
        entry.gzipped = _whole(gzipped(entry.whole.body), b"W/" + entry.etag, (b"content-encoding", b"gzip"))
        self._bytes += len(entry.gzipped.body)
        self._evict()
        return entry.gzipped

    def _evict(self) -> None:
        while len(self._entries) > MAX_ENTRIES or self._bytes > MAX_BYTES:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= oldest.size


def _whole(body: bytes, etag: bytes, *more: tuple[bytes, bytes]) -> CachedResponse:
    content = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more)
    return CachedResponse(200, (*content, *_headers(etag)), body)


def _headers(etag: bytes) -> Headers:
    return (b"etag", etag), (b"cache-control", CACHING.encode()), (b"vary", b"Accept-Encoding")


def _matches(if_none_match: bytes, etag: bytes) -> bool:
    """Compare weakly: compressing proxies mark the tag as weak."""
    if if_none_match == etag:
        return True
    tags = [tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")]
    return etag in tags or tags == [b"*"]
