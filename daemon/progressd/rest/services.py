"""What the REST side works with: it reads the registry and the store, and writes only through ingest."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

import msgspec
import trio
from quart import Response, current_app
from quart_trio import QuartTrio
from werkzeug.exceptions import NotFound

from progressd.batches import Batches
from progressd.broadcast.broadcaster import Broadcaster
from progressd.config import Settings
from progressd.core.errors import InvalidInput
from progressd.files import Files
from progressd.history import History
from progressd.ingest import Ingest
from progressd.registry import Registry
from progressd.rest.body import PacedConnection, PacedRequest
from progressd.rest.file_body import FileResponse
from progressd.rest.idempotency import IdempotencyKeys
from progressd.rest.open_streams import OpenStreams
from progressd.store.base import Store

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


@dataclass
class Services:
    """The parts of the daemon, and whether it still takes work."""

    settings: Settings
    store: Store
    registry: Registry
    batches: Batches
    history: History
    broadcaster: Broadcaster
    ingest: Ingest
    files: Files
    streams: OpenStreams
    ready: bool = False
    registering: trio.Lock = field(default_factory=trio.Lock)

    def __post_init__(self) -> None:
        self.keys = IdempotencyKeys(self.store.id)


class RestApp(QuartTrio):
    """The application; its handlers find the daemon's parts with `services`."""

    asgi_http_class = PacedConnection
    request_class = PacedRequest
    response_class = FileResponse
    services: Services

    async def send_static_file(self, filename: str) -> Response:
        """A file of the page; a name too long for the file system is one that does not exist."""
        try:
            return await super().send_static_file(filename)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise NotFound from None


def services() -> Services:
    """The daemon's parts, inside a request."""
    return cast(RestApp, current_app).services


def converted(query: Mapping[str, str], type_: type[T]) -> T:
    """A query as a struct. Raises InvalidInput."""
    try:
        return msgspec.convert(dict(query.items()), type_, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the query is wrong: {error}") from None


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(_encode(body), status, headers, content_type="application/json")
