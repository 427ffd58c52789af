"""The context of the routes: the client of the request, the parts of the daemon, and state shared by all requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast
from weakref import WeakValueDictionary

import msgspec
import trio
from quart import Response, request

from progressd.auth.authenticator import Authenticator, Client
from progressd.auth.limits import RateLimiter, address_group
from progressd.broadcast.outbox import MemoryBudget
from progressd.config.settings import Limits, Settings
from progressd.core.errors import RequestTimeout, TooManyUploads
from progressd.engine.queue_estimates import QueueEstimates
from progressd.engine.uploads import UploadedJobs
from progressd.engine.view import ClientView, Engine
from progressd.files.job_files import JobFiles
from progressd.http.body import BodyChunks
from progressd.http.job_cache import JobResponseCache
from progressd.http.metrics import MetricsCollector
from progressd.http.stats_history import StatsHistory
from progressd.http.streams import HTTPStreams
from progressd.net.request import BasePath
from progressd.producers.ndjson import MAX_ANSWERS

CONTEXT: Final = "progressd.context"  # the key of a RequestContext in an ASGI scope
# Bytes of unread NDJSON answers of all clients together. Each client may have MAX_ANSWERS, because many clients read no
# answer before they have sent all lines. Above the limit, the client with the most unread answers is disconnected.
MAX_PENDING: Final = 4 * MAX_ANSWERS
STALL_TIMEOUT: Final = 5.0  # seconds that an upload must be behind before a new one can replace it

_encode = msgspec.json.Encoder().encode


class _Upload(NamedTuple):
    """A request that uploads files, and the scope that cancels it."""

    client: str
    body: BodyChunks
    scope: trio.CancelScope


class Transfers:
    """The uploads and downloads in progress: limit them, cancel a stalled upload for a new one, delay a shutdown."""

    def __init__(self) -> None:
        self.ends = set[trio.Event]()  # an event for each transfer in progress, set when the transfer ends
        self.uploads = list[_Upload]()

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
        upload = _Upload(client, body, trio.CancelScope())
        self.uploads.append(upload)
        try:
            with self.active(), upload.scope:
                yield
        finally:
            self._remove(upload)
        if upload.scope.cancelled_caught:
            raise RequestTimeout(
                "the upload was stopped: its body arrived too slowly, and another needed its slot (send it again)"
            )

    def _make_room(self, uploads: list[_Upload], error: TooManyUploads) -> None:
        """Cancel the upload that is furthest behind. Raises the error if no upload is."""
        slowest = max(uploads, key=lambda upload: upload.body.behind())
        if slowest.body.behind() < STALL_TIMEOUT:
            raise error
        self._remove(slowest)
        slowest.scope.cancel()

    def _remove(self, upload: _Upload) -> None:
        if upload in self.uploads:
            self.uploads.remove(upload)


class Reception(NamedTuple):
    """A request that holds a resumable upload. `body`: of a request that adds to it."""

    body: BodyChunks | None
    scope: trio.CancelScope
    ended: trio.Event


@dataclass
class AppContext:
    """The parts of the daemon that serve HTTP requests."""

    settings: Settings  # the settings in force
    authenticator: Authenticator
    rate_limits: RateLimiter
    engine: Engine
    files: JobFiles
    uploaded_jobs: UploadedJobs
    streams: HTTPStreams
    metrics: MetricsCollector
    stats_history: StatsHistory
    answers: JobResponseCache
    queue_estimates: QueueEstimates
    base: BasePath
    ready: bool = False  # whether the daemon accepts work
    transfers: Transfers = field(default_factory=Transfers)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(MAX_PENDING))  # memory of unread NDJSON answers
    receiving: dict[str, "Reception"] = field(default_factory=dict)  # requests that hold a resumable upload, by its id
    claimed_ids: set[str] = field(default_factory=set)  # jobs and batches of idempotency keys that are being created
    registering: WeakValueDictionary[str, trio.Lock] = field(default_factory=WeakValueDictionary)  # locks by job
    deleting: trio.Lock = field(default_factory=trio.Lock)  # one deletion at a time: uploads and events wait for it

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings."""
        self.settings = settings


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request: its client, and the jobs, batches and events visible to this client."""

    app: AppContext
    client: Client
    view: ClientView

    @property
    def owner(self) -> str:
        """Return the name of the request's key, or the client's address."""
        name = self.client.identity.name
        return f"address:{address_group(self.client.address)}" if name is None else f"key:{name}"


def request_context() -> RequestContext:
    """Return the context of the current request, created by AccessMiddleware."""
    return cast(RequestContext, request.scope[CONTEXT])  # type: ignore[typeddict-item]


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    return Response(_encode(body), status, headers, content_type="application/json")
