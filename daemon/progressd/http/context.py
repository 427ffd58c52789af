"""What the REST side works with: it reads the registry and the store, and writes only through ingest."""

import errno
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import TypeVar, cast

import msgspec
import trio
from quart import Response, current_app, request
from quart_trio import QuartTrio
from werkzeug.exceptions import NotFound

from progressd.auth.authenticator import Authenticator
from progressd.auth.identity import EVERYBODY, Identity
from progressd.broadcast.memory_budget import MemoryBudget
from progressd.config.settings import Settings
from progressd.core.errors import InvalidInput
from progressd.core.json import reason_of
from progressd.engine.access import ScopedServices, Scopes
from progressd.files.job_files import JobFiles
from progressd.http.body import BackpressuredConnection, BackpressuredRequest
from progressd.http.collector import MetricsCollector
from progressd.http.file_body import FileBody, FileResponse
from progressd.http.middleware.access import AccessMiddleware, who_asks
from progressd.http.middleware.idempotency import IdempotencyKeys
from progressd.http.middleware.job_cache import JobResponseCache
from progressd.http.open_streams import StreamRegistry
from progressd.http.routes.ndjson_response import MAX_PENDING
from progressd.net.base_path import BasePath

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


@dataclass
class AppContext:
    """The parts of the daemon, and whether it still takes work."""

    settings: Settings
    authenticator: Authenticator
    scopes: Scopes
    files: JobFiles
    streams: StreamRegistry
    collector: MetricsCollector
    access: AccessMiddleware = field(init=False)
    ready: bool = False
    registering: trio.Lock = field(default_factory=trio.Lock)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(MAX_PENDING))  # of the answers to producers

    def __post_init__(self) -> None:
        self._look(self.scopes.of(EVERYBODY))
        self.broadcaster = self.scopes.broadcaster
        self.keys = IdempotencyKeys(self.store.id)
        self.base = BasePath(self.settings.server.base_path)
        self.answers = JobResponseCache(self.store.id, self.base)
        self.everything = self  # as it is for those who see all jobs

    def seen_by(self, who: Identity) -> "AppContext":
        """The same parts, in which only the jobs of `who` exist."""
        if who.name is None:
            return self
        seen = copy(self)
        seen.keys = self.keys.of(who.key)
        if who.bound:
            seen._look(self.scopes.of(who))
        return seen

    def _look(self, scope: ScopedServices) -> None:
        self.store = scope.store
        self.registry = scope.registry
        self.batches = scope.batches
        self.history = scope.history
        self.ingest = scope.ingest


class RestApp(QuartTrio):
    """The application; its handlers find the daemon's parts with `services`."""

    asgi_http_class = BackpressuredConnection
    request_class = BackpressuredRequest
    response_class = FileResponse
    services: AppContext

    async def send_static_file(self, filename: str) -> Response:
        """A file of the page; a name too long for the file system is one that does not exist."""
        try:
            response = await super().send_static_file(filename)
            if isinstance(response.response, FileBody):
                await response.response.require_opens()
            return response
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise NotFound from None


def services() -> AppContext:
    """The daemon's parts, inside a request: as far as whoever sends it has to do with them."""
    return cast(RestApp, current_app).services.seen_by(who_asks(request.scope))


def converted(query: Mapping[str, str], type_: type[T]) -> T:
    """A query as a struct. Raises InvalidInput."""
    try:
        return msgspec.convert(dict(query.items()), type_, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the query is wrong: {reason_of(error)}") from None


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(_encode(body), status, headers, content_type="application/json")
