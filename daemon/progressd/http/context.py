"""The context of a request: its client, and the parts of the daemon that its route uses."""

from dataclasses import dataclass, field
from typing import Final, cast
from weakref import WeakValueDictionary

import msgspec
import trio
from quart import Response, request

from progressd.auth.authenticator import Authenticator, Client
from progressd.auth.limits import RateLimiter
from progressd.broadcast.backlog import MemoryBudget
from progressd.broadcast.broadcaster import Broadcaster
from progressd.config.settings import Settings
from progressd.engine.access import ScopedServices, Scopes
from progressd.files.job_files import JobFiles
from progressd.http.collector import MetricsCollector
from progressd.http.middleware.idempotency import IdempotencyKeys
from progressd.http.middleware.job_cache import JobResponseCache
from progressd.http.open_streams import StreamRegistry
from progressd.net.request import BasePath

CONTEXT: Final = "progressd.context"  # the key of a RequestContext in an ASGI scope

_encode = msgspec.json.Encoder().encode


class ServerState:
    """The settings in force, and whether the daemon accepts work."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ready = False

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings."""
        self.settings = settings

    def accept_work(self, accept: bool) -> None:
        """Start or stop accepting work."""
        self.ready = accept


@dataclass(frozen=True)
class AppContext:
    """The parts of the daemon that serve HTTP requests."""

    state: ServerState
    authenticator: Authenticator
    rate_limits: RateLimiter
    scopes: Scopes
    broadcaster: Broadcaster
    files: JobFiles
    streams: StreamRegistry
    collector: MetricsCollector
    answers: JobResponseCache
    keys: IdempotencyKeys
    base: BasePath
    budget: MemoryBudget  # memory of unread NDJSON answers
    registering: WeakValueDictionary[str, trio.Lock] = field(default_factory=WeakValueDictionary)  # locks by job
    deleting: trio.Lock = field(default_factory=trio.Lock)  # one deletion at a time: uploads and events wait for it

    @property
    def settings(self) -> Settings:
        """Return the settings in force."""
        return self.state.settings

    @property
    def ready(self) -> bool:
        """Return whether the daemon accepts work."""
        return self.state.ready


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request: its client, and the jobs, batches and events visible to this client."""

    app: AppContext
    client: Client
    scope: ScopedServices


def request_context() -> RequestContext:
    """Return the context of the current request, created by AccessMiddleware."""
    return cast(RequestContext, request.scope[CONTEXT])  # type: ignore[typeddict-item]


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    return Response(_encode(body), status, headers, content_type="application/json")
