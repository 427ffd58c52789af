"""The context of a request: its client, and the parts of the daemon that its route uses."""

from dataclasses import dataclass, field
from typing import Final, cast
from weakref import WeakValueDictionary

import trio
from quart import request

from progressd.auth.authenticator import Authenticator, Client
from progressd.auth.limits import RateLimiter, counted_as
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.outbox import MemoryBudget
from progressd.config.settings import Settings
from progressd.engine.access import ScopedServices, Scopes
from progressd.engine.forecasts import Queue
from progressd.files.job_files import JobFiles
from progressd.http.body import Transfers
from progressd.http.job_cache import JobResponseCache
from progressd.http.metrics import MetricsCollector
from progressd.http.streams import StreamRegistry
from progressd.net.request import BasePath
from progressd.producers.ndjson import MAX_ANSWERS

CONTEXT: Final = "progressd.context"  # the key of a RequestContext in an ASGI scope
# Bytes of unread NDJSON answers of all clients together. Each client may have MAX_ANSWERS, because many read no answer
# before they have sent all lines. Above the limit, the client with the most unread answers is disconnected.
MAX_PENDING: Final = 4 * MAX_ANSWERS


@dataclass
class AppContext:
    """The parts of the daemon that serve HTTP requests."""

    settings: Settings  # the settings in force
    authenticator: Authenticator
    rate_limits: RateLimiter
    views: Scopes
    broadcaster: Broadcaster
    files: JobFiles
    streams: StreamRegistry
    metrics: MetricsCollector
    answers: JobResponseCache
    queue: Queue
    base: BasePath
    ready: bool = False  # whether the daemon accepts work
    transfers: Transfers = field(default_factory=Transfers)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(MAX_PENDING))  # memory of unread NDJSON answers
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
    view: ScopedServices

    @property
    def owner(self) -> str:
        """Return the name of the request's key, or the client's address."""
        name = self.client.identity.name
        return f"address:{counted_as(self.client.address)}" if name is None else f"key:{name}"


def request_context() -> RequestContext:
    """Return the context of the current request, created by AccessMiddleware."""
    return cast(RequestContext, request.scope[CONTEXT])  # type: ignore[typeddict-item]
