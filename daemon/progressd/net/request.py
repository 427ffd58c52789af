"""Requests over HTTP and WebSocket: their path prefix, headers and query parameters."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, NamedTuple, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from progressd.core.errors import InvalidInput
from progressd.core.messages import Completed, TopicMessage, type_of

# Sent with every response: browsers must not run or embed anything else.
ALWAYS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
ALWAYS_ALLOWED: Final = frozenset({"token", "_"})  # a watch token; a parameter that dashboards add to bypass caches
TYPES: Final = frozenset(type_of(kind) for kind in get_args(TopicMessage))

M = TypeVar("M", bound=TopicMessage)


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """Return the first value of a lower-case name, or ""."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")


class StreamQuery(Struct, frozen=True):
    """The query of a stream: the cursor to resume after, the progress interval per job, and the message types."""

    since: str | None = None
    interval: Annotated[float, Meta(ge=0, le=60)] = 0
    types: str | None = None


class StreamRequest(NamedTuple):
    """The stream that a client requests. `topic`: None if the client subscribes later. `types`: None for all."""

    topic: str | None
    since: str | None
    interval: float
    types: frozenset[str] | None


def require_known(given: Iterable[str], *structs: type[Struct]) -> None:
    """Check the names of query parameters against the fields of the structs. Raises InvalidInput."""
    known = [name for struct in structs for name in struct.__struct_fields__]
    if unknown := set(given) - ALWAYS_ALLOWED.union(known):
        known_here = f"known here: {', '.join(known)}" if known else "none is known here"
        raise InvalidInput(f"the query is wrong: unknown parameter {min(unknown)[:60]!r} ({known_here})")


def stream_request(topic: str | None, query: Mapping[str, str]) -> StreamRequest:
    """Parse the query for a topic. Raises InvalidInput."""
    try:
        parsed = msgspec.convert(query, StreamQuery, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the query is wrong: {error}") from None
    types = None if parsed.types is None else frozenset(parsed.types.split(","))
    if unknown := (types or frozenset[str]()) - TYPES:
        raise InvalidInput(f"there is no type {min(unknown)[:60]!r}: the types are {', '.join(sorted(TYPES))}")
    return StreamRequest(topic, parsed.since, parsed.interval, types)


def download_path(job_id: str) -> str:
    """Return the path of a job's result as the store keeps it, without the prefix."""
    return f"/api/jobs/{job_id}/download"


class BasePath:
    """The path prefix under which a proxy serves the daemon, such as `/progress/`: the setting `server.base_path`.

    The daemon also answers at the root, for proxies that strip the prefix.
    """

    def __init__(self, path: str = "/") -> None:
        self.text = path.rstrip("/")  # "" at the root
        self._target = f"{self.text}/".encode() if self.text else b""

    def url(self, path: str) -> str:
        """Add the prefix to a path of the daemon."""
        return self.text + path

    def result(self, job_id: str, kept: str | None) -> str | None:
        """Return where clients download a job's result. `kept` may hold a prefix from before the setting changed."""
        own = download_path(job_id)
        return self.url(own) if kept is not None and kept.startswith("/") and kept.endswith(own) else kept

    def shown(self, message: M) -> M:
        """Return the message with URLs that clients can use."""
        if isinstance(message, Completed):
            url = self.result(message.job_id, message.data.output_path)
            return replace(message, data=replace(message.data, output_path=url, download_url=url))
        return message

    def strip(self, target: bytes) -> bytes:
        """Remove the prefix from a request target."""
        if self._target and target.startswith(self._target):
            return target[len(self._target) - 1 :]
        return target

    def strip_head(self, head: bytes) -> bytes:
        """Remove the prefix from the start of a request head if it is a GET."""
        return b"GET " + self.strip(head[4:]) if head.startswith(b"GET ") else head


AT_ROOT: Final = BasePath()
