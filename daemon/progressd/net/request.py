"""Requests over HTTP and WebSocket: their path prefix, headers, origin and query parameters.

Browsers let any page send requests to any reachable host. The Origin header names the site of the page. A page can also
make its own name resolve to this machine (DNS rebinding), which makes it the same origin. The browser still sends that
name in Host. An IP address in Host cannot be rebound.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Final, NamedTuple, TypeVar, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, inspect
from msgspec.structs import replace

from progressd.auth.limits import is_address
from progressd.config.settings import Server
from progressd.core.errors import Forbidden, InvalidInput
from progressd.core.messages import Completed, TopicMessage, type_of

# Sent with every response: browsers must not run or embed anything else.
ALWAYS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'self'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
ALWAYS_ALLOWED: Final = frozenset({"token", "_"})  # a watch token; a parameter that dashboards add to bypass caches
TYPES: Final = frozenset(type_of(kind) for kind in get_args(TopicMessage))
MAX_HOST: Final = 300  # characters: a name has at most 253, followed by a port

_PARAMETER: Final = re.compile(r"`\$\.(\w+)[^`]*`$")  # in an error of msgspec
_HOST: Final = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")  # RFC 9110 §7.2

M = TypeVar("M", bound=TopicMessage)
T = TypeVar("T")


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """Return the first value of a lower-case name, or ""."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")


def check_host(host: str, server: Server) -> None:
    """Check the Host header, "" if absent; browsers always send it. Raises Forbidden."""
    if len(host) > MAX_HOST or not _is_valid(host):  # longer hosts would be slow to check
        raise Forbidden(f"the Host header {host[:200]} is not a valid host name")
    name = _name(host)
    if not host or _cannot_be_rebound(name):
        return
    if name not in map(str.lower, (server.host, *server.allowed_hosts)) and "*" not in server.allowed_hosts:
        raise Forbidden(f"the host {host[:200]} is not allowed: add it to server.allowed_hosts to allow it")


def check_origin(origin: str, host: str, server: Server) -> None:
    """Check the Origin and Host headers, "" if absent. Raises Forbidden for a page of another site.

    Under TLS, a page loaded without TLS counts as a page of another site: anybody on the network path can have changed
    it. A daemon without TLS may be behind a proxy with TLS, so it accepts both schemes.
    """
    if not origin or origin in server.allowed_origins:
        return
    try:
        site = urlsplit(origin)
    except ValueError:  # not a URL
        site = urlsplit("")
    if origin == "null":
        raise Forbidden(
            "pages without an origin, such as those opened from a file, are not allowed: serve the page from a web "
            "server, and add its origin to server.allowed_origins"
        )
    schemes = ("https",) if server.tls_cert else ("http", "https")
    if not site.netloc or site.netloc.lower() != host.lower() or site.scheme not in schemes:
        raise Forbidden(f"pages of {origin[:200]} are not allowed: add it to server.allowed_origins to allow them")


class StreamQuery(Struct, frozen=True):
    """The query of a stream: the cursor to resume after, the progress interval per job, and the message types."""

    since: str | None = None
    interval: Annotated[float, Meta(ge=0, le=60)] = 0
    types: str | None = None


class LogTextQuery(Struct, frozen=True):
    """The query of a log as text. `ansi`: keep escape sequences. `follow`: continue until the job has finished."""

    follow: bool = False
    ansi: bool = False
    times: bool = False


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


def parsed_query(query: Mapping[str, object], type_: type[T]) -> T:
    """Return a query as a struct. Raises InvalidInput."""
    try:
        return msgspec.convert(dict(query.items()), type_, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the query is wrong: {_reason(error, query, type_)}") from None


def _reason(error: msgspec.ValidationError, query: Mapping[str, object], type_: type) -> str:
    """Return why a query is invalid: its wrong parameter, and the values that are allowed."""
    if (found := _PARAMETER.search(str(error))) is None:
        return str(error)  # of a struct that checks its fields together
    fields = inspect.type_info(type_)
    assert isinstance(fields, inspect.StructType)
    [field] = [field for field in fields.fields if field.encode_name == found[1]]
    return f"{field.name} {_deviation(str(query[field.name]), field.type)}"


def _deviation(value: str, type_: inspect.Type) -> str:
    """Return how a value differs from the values of its type."""
    match type_:
        case inspect.Metadata(extra_json_schema={"format": "uuid"}):
            return f"is {value[:60]!r}, not a UUID"
        case inspect.Metadata():
            return _deviation(value, type_.type)
        case inspect.UnionType():
            return _deviation(value, next(one for one in type_.types if not isinstance(one, inspect.NoneType)))
        case inspect.StrType(max_length=int(most)):
            return f"has more than {most} characters"
    return f"is {value[:60]!r}, not {_allowed(type_)}"


def _allowed(type_: inspect.Type) -> str:
    """Return the values of a type in words."""
    match type_:
        case inspect.EnumType():
            return f"one of {', '.join(str(one.value) for one in type_.cls)}"
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, type_.values))}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(type_, inspect.IntType) else "a number"
            if type_.le is not None and type_.ge is not None:
                return f"{noun} from {type_.ge} to {type_.le}"
            ends = (("of at least", type_.ge), ("above", type_.gt), ("and at most", type_.le))
            return " ".join([noun, *(f"{words} {end}" for words, end in ends if end is not None)])
    return "a valid value"


def stream_request(topic: str | None, query: Mapping[str, str]) -> StreamRequest:
    """Parse the query for a topic. Raises InvalidInput."""
    if not query:
        return StreamRequest(topic, None, 0, None)
    parsed = parsed_query(query, StreamQuery)
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
        """Return the URL of a job's result for clients. `kept` may have the prefix of an earlier setting."""
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


def _name(host: str) -> str:
    """Return the host without its port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].removesuffix(".").lower()


@lru_cache(maxsize=256)
def _cannot_be_rebound(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or is_address(name)


@lru_cache(maxsize=256)
def _is_valid(host: str) -> bool:
    """Return whether the text is a host with an optional port, with labels of 1 to 63 characters (RFC 1035 §2.3.4).

    Quart's routing fails on longer or empty labels.
    """
    if not _HOST.fullmatch(host):
        return False
    try:
        host.partition(":")[0].lower().encode("idna")
    except UnicodeError:
        return False
    return True
