"""Cache the responses to reads of jobs: encode each once for all clients, until the job changes."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from progressd import __version__
from progressd.core.eta import UsualStep
from progressd.core.job import Job
from progressd.engine.queue_estimates import QueuePlace
from progressd.http.schemas import job_view
from progressd.net.request import BasePath

MAX_ENTRIES: Final = 4096  # jobs, about 1.5 KiB each
MAX_ENTRY_BYTES: Final = 4096  # larger bodies are rare, and are encoded each time
MIN_GZIP_BYTES: Final = 1400  # a shorter response is one packet, compressed or not
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


class _Entry(NamedTuple):
    offset: int  # offset of the job, which changes with every change of the job
    place: QueuePlace | None  # in the queue, which also changes with other jobs
    slow: bool  # which changes with time
    etag: bytes
    whole: CachedResponse
    not_modified: CachedResponse


class JobResponseCache:
    """The responses for jobs in their current state. New entries replace the oldest."""

    def __init__(
        self, store_id: str, base: BasePath, usual_steps: Callable[[Job], Sequence[UsualStep]] = lambda _: ()
    ) -> None:
        self._store_id = store_id
        self._base = base
        self._usual_steps = usual_steps
        self._entries: dict[str, _Entry] = {}

    def answer(self, job: Job, if_none_match: bytes | None, place: QueuePlace | None = None) -> CachedResponse:
        """Return the job, or 304 if the client already has it (RFC 9110 §13.1.2). `place`: in the runner's queue."""
        entry = self._entries.get(job.id)
        if entry is None or entry.offset != job.offset or entry.place != place or entry.slow is not job.progress.slow:
            entry = self._add(job, place)
        known = if_none_match is not None and _matches(if_none_match, entry.etag)
        return entry.not_modified if known else entry.whole

    def _add(self, job: Job, place: QueuePlace | None) -> _Entry:
        view = job_view(job, self._store_id, self._base, place, with_steps=True, usual=self._usual_steps(job))
        body = _encode(view)
        queue = "" if place is None else f".{place.position}.{place.expected_start or ''}".replace(" ", "T")
        queue += ".slow" if job.progress.slow else ""
        etag = f'"{view.cursor}.{__version__}{self._base.text}{queue}"'.encode()  # another version may add fields
        headers = (b"etag", etag), (b"cache-control", CACHING.encode()), (b"vary", b"Accept-Encoding")
        content = (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))
        whole, not_modified = CachedResponse(200, (*content, *headers), body), CachedResponse(304, headers, b"")
        entry = _Entry(job.offset, place, job.progress.slow, etag, whole, not_modified)
        self._entries.pop(job.id, None)
        if len(body) <= MAX_ENTRY_BYTES:
            self._entries[job.id] = entry
        if len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        return entry


def _matches(if_none_match: bytes, etag: bytes) -> bool:
    """Compare weakly: compressing proxies mark the tag as weak."""
    if if_none_match == etag:
        return True
    tags = [tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")]
    return etag in tags or tags == [b"*"]
