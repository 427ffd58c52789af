"""The handshake: parse the request target of a WebSocket into the stream to watch."""

from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple, get_args
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from progressd.core.errors import InvalidInput, NotFound
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.messages import ALL_JOBS, TopicMessage, batch_topic, job_topic, type_of
from progressd.net.query import require_known

PUBLISH: Final = "/ws/publish"  # for producers
TYPES: Final = frozenset(type_of(kind) for kind in get_args(TopicMessage))


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


def publishes(target: str) -> bool:
    """Return whether the client is a producer rather than a watcher."""
    return target.partition("?")[0] == PUBLISH


def check_query(target: str) -> None:
    """Check the parameter names in a request target. Raises InvalidInput."""
    require_known(_query(target), *(() if publishes(target) else (StreamQuery,)))


def read_stream_request(target: str) -> StreamRequest:
    """Parse a request target, such as `/ws/jobs/ID?since=CURSOR&interval=0.5&types=completed,error`.

    Raises InvalidInput for a malformed id or query, NotFound for a path without a stream.
    """
    return stream_request(_read_path(target.partition("?")[0]), _query(target))


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


def _query(target: str) -> dict[str, str]:
    return dict(parse_qsl(target.partition("?")[2], keep_blank_values=True))


def _read_path(path: str) -> str | None:
    match path.split("/")[2:]:
        case []:
            return None
        case ["jobs"]:
            return ALL_JOBS
        case ["jobs", text]:
            return job_topic(checked_job_id(text))
        case ["batch", text]:
            return batch_topic(checked_batch_id(text))
    raise NotFound(f"there is no stream at {path[:200]}: try /ws/jobs, /ws/jobs/JOB_ID or /ws/batch/BATCH_ID")
