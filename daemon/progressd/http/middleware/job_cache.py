"""What a read of a job is answered: encoded once for however many ask, until the job changes."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from progressd import __version__
from progressd.core.job import Job
from progressd.http.middleware.compression import MAX_INLINE_BYTES, MIN_BYTES, gzipped, takes_gzip
from progressd.http.schemas.views import job_view
from progressd.net.base_path import BasePath

MAX_ENTRIES: Final = 4096  # jobs whose answers are kept, about 1.5 KiB each
MAX_BYTES: Final = 16 * 1024 * 1024  # of their bodies
CACHING: Final = "private, no-cache"  # keep it, and ask each time whether it is still so

Headers = Sequence[tuple[bytes, bytes]]
_encode = msgspec.json.Encoder().encode


class CachedResponse:
    """A whole answer over HTTP; names of headers are in lower case."""

    __slots__ = ("body", "headers", "made", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.made: tuple[int, object] | None = None  # what the protocol made of it, and in which second

    def marked(self, marks: Headers) -> "CachedResponse":
        """The same with more headers."""
        return CachedResponse(self.status, (*self.headers, *marks), self.body) if marks else self


@dataclass(slots=True)
class _Kept:
    offset: int  # of the job: nothing else of it changes without this
    etag: bytes
    whole: CachedResponse
    unchanged: CachedResponse
    small: CachedResponse | None = None  # the whole in gzip, once somebody has asked for that

    @property
    def size(self) -> int:
        """Bytes of the bodies."""
        return len(self.whole.body) + (len(self.small.body) if self.small else 0)


class JobResponseCache:
    """Answers of jobs as they are now."""

    def __init__(self, store_id: str, base: BasePath) -> None:
        self._store_id = store_id
        self._base = base
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    def answer(self, job: Job, if_none_match: bytes | None, accept_encoding: bytes = b"") -> CachedResponse:
        """The job, or 304 where the client has it already (RFC 9110 §13.1.2); in gzip where that pays.

        Without it where that takes long.
        """
        kept = self._kept.get(job.id)
        if kept is None or kept.offset != job.offset:
            kept = self._keep(job)
        if if_none_match is not None and _matches(if_none_match, kept.etag):
            return kept.unchanged
        if MIN_BYTES <= len(kept.whole.body) <= MAX_INLINE_BYTES and takes_gzip(accept_encoding.decode("latin-1")):
            return kept.small or self._compress(kept)
        return kept.whole

    def _keep(self, job: Job) -> _Kept:
        view = job_view(job, self._store_id, self._base)
        etag = f'"{view.cursor}.{__version__}{self._base.text}"'.encode()  # another version may tell more of a job
        kept = _Kept(job.offset, etag, _whole(_encode(view), etag), CachedResponse(304, _fields(etag), b""))
        if (before := self._kept.pop(job.id, None)) is not None:
            self._bytes -= before.size
        self._kept[job.id] = kept
        self._bytes += kept.size
        self._forget()
        return kept

    def _compress(self, kept: _Kept) -> CachedResponse:
        small = kept.small = _whole(gzipped(kept.whole.body), b"W/" + kept.etag, (b"content-encoding", b"gzip"))
        self._bytes += len(small.body)
        self._forget()
        return small

    def _forget(self) -> None:
        """The oldest, as long as there is too much."""
        while len(self._kept) > MAX_ENTRIES or self._bytes > MAX_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size


def _whole(body: bytes, etag: bytes, *more: tuple[bytes, bytes]) -> CachedResponse:
    content = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more)
    return CachedResponse(200, (*content, *_fields(etag)), body)


def _fields(etag: bytes) -> Headers:
    return (b"etag", etag), (b"cache-control", CACHING.encode()), (b"vary", b"Accept-Encoding")


def _matches(if_none_match: bytes, etag: bytes) -> bool:
    """Weak comparison, as for GET: proxies that compress mark the tag as weak."""
    if if_none_match == etag:
        return True
    tags = [tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")]
    return etag in tags or tags == [b"*"]
