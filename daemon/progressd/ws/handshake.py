"""The handshake: decides from a WebSocket request what the client will watch, or why it is refused."""

from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from progressd.core.cursor import Cursor
from progressd.core.errors import Forbidden, InvalidInput, NotFound
from progressd.core.events import checked_job_id
from progressd.core.messages import ALL_JOBS, job_topic

UNKNOWN_CURSOR: Final = Cursor("", 0)  # no store has this name


class Wish(NamedTuple):
    """What a client asks for. `since`: where it wants to resume; None: a new watcher."""

    topic: str
    job_id: str | None
    since: Cursor | None


def read_wish(target: str) -> Wish:
    """Read the request target, such as `/ws/jobs/ID?since=CURSOR`.

    Raises InvalidInput for a malformed id, NotFound for a path that is no stream.
    """
    url = urlsplit(target)
    query = parse_qs(url.query)
    since = _since(query["since"][0]) if "since" in query else None
    match url.path.split("/")[2:]:
        case ["jobs"]:
            return Wish(ALL_JOBS, None, since)
        case ["jobs", text]:
            job_id = checked_job_id(text)
            return Wish(job_topic(job_id), job_id, since)
    raise NotFound(f"there is no stream at {url.path[:200]}: try /ws/jobs or /ws/jobs/JOB_ID")


def _since(text: str) -> Cursor:
    try:
        return Cursor.parse(text)
    except InvalidInput:
        return UNKNOWN_CURSOR  # answered with a resync, like any cursor that means nothing here


def check_origin(origin: str, host: str, allowed: Sequence[str]) -> None:
    """Keep the pages of other sites out: browsers send Origin, and let any page open a WebSocket anywhere.

    `origin` and `host` are those headers, "" where absent. Raises Forbidden.
    """
    if not origin or origin in allowed or "*" in allowed:
        return
    if urlsplit(origin).netloc.lower() != host.lower():
        raise Forbidden(f"pages of {origin[:200]} may not connect: add it to server.allowed_origins to let them")
