"""What a read of a job is answered: encoded once for however many ask, until the job changes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from progressd import __version__
from progressd.core.base_path import BasePath
from progressd.core.job import Job
from progressd.rest.headers import HEADERS
from progressd.rest.views import job_view

KEPT: Final = 4096  # jobs whose answers are kept, about 1.5 KiB each
KEPT_BYTES: Final = 16 * 1024 * 1024  # of their bodies
CACHING: Final = "private, no-cache"  # keep it, and ask each time whether it is still so

Headers = Sequence[tuple[bytes, bytes]]
_ALWAYS: Final = tuple((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
_encode = msgspec.json.Encoder().encode


class Answer:
    """A whole answer over HTTP; names of headers are in lower case."""

    __slots__ = ("body", "headers", "made", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.made: tuple[int, object] | None = None  # what the protocol made of it, and in which second

    def marked(self, marks: Headers) -> "Answer":
        """The same with more headers."""
        return Answer(self.status, (*self.headers, *marks), self.body) if marks else self


class _Kept(NamedTuple):
    offset: int  # of the job: nothing else of it changes without this
    etag: bytes
    whole: Answer
    unchanged: Answer


class JobAnswers:
    """Answers of jobs as they are now."""

    def __init__(self, store_id: str, base: BasePath) -> None:
        self._store_id = store_id
        self._base = base
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    def answer(self, job: Job, if_none_match: bytes | None) -> Answer:
        """The job, or 304 where the client has it already (RFC 9110 §13.1.2)."""
        kept = self._kept.get(job.id)
        if kept is None or kept.offset != job.offset:
            kept = self._keep(job)
        if if_none_match is not None and _matches(if_none_match, kept.etag):
            return kept.unchanged
        return kept.whole

    def _keep(self, job: Job) -> _Kept:
        view = job_view(job, self._store_id, self._base)
        etag = f'"{view.cursor}.{__version__}{self._base.text}"'.encode()  # another version may tell more of a job
        fields = ((b"etag", etag), (b"cache-control", CACHING.encode()), (b"vary", b"Accept-Encoding"), *_ALWAYS)
        body = _encode(view)
        content = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        kept = _Kept(job.offset, etag, Answer(200, (*content, *fields), body), Answer(304, fields, b""))
        if (before := self._kept.pop(job.id, None)) is not None:
            self._bytes -= len(before.whole.body)
        self._kept[job.id] = kept
        self._bytes += len(body)
        while len(self._kept) > KEPT or self._bytes > KEPT_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.whole.body)
        return kept


def _matches(if_none_match: bytes, etag: bytes) -> bool:
    """Weak comparison, as for GET: proxies that compress mark the tag as weak."""
    if if_none_match == etag:
        return True
    tags = [tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")]
    return etag in tags or tags == [b"*"]
