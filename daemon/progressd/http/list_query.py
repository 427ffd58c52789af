"""The query of a list of jobs: its filters, its order, and the token of the next page."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct
from werkzeug.datastructures import MultiDict

from progressd.core.errors import InvalidInput
from progressd.core.messages import FINISHED, JobStatus
from progressd.net.request import parsed_query
from progressd.store.base import Filter, Paging, Position, Sort

MAX_PAGE: Final = 1000  # jobs
REPEATABLE: Final = ("status", "label")
MAX_QUERY: Final = 200  # characters of `q`
MAX_WORDS: Final = 10
_TOKEN: Final = re.compile(r"([a-z]{1,10})\.([0-9]{1,16})(?:\.([A-Za-z0-9_-]{0,5400}))?", re.ASCII)  # 1000 characters


class PageQuery(Struct, frozen=True):
    """The query of a list. A limit above 1000 counts as 1000."""

    limit: Annotated[int, Meta(ge=1)] = 50
    offset: Annotated[int, Meta(ge=0, le=2**53)] = 0
    status: Annotated[
        tuple[JobStatus, ...], Meta(description="Jobs with one of these; repeat it, or separate them by commas.")
    ] = ()
    kind: str | None = None
    label: Annotated[
        tuple[Annotated[str, Meta(pattern="^[^=]+=")], ...],
        Meta(description="Jobs with all of these labels, each as NAME=VALUE; repeat it."),
    ] = ()
    q: (
        Annotated[
            str,
            Meta(
                max_length=MAX_QUERY,
                description="Words that all occur in the name, kind, file name, labels, id or error of a job.",
            ),
        ]
        | None
    ) = None
    host: Annotated[str, Meta(description="The same as `label=host=NAME`.")] | None = None
    attention: Annotated[
        bool, Meta(description="Only failed jobs, and unfinished ones that are stalled or slower than usual.")
    ] = False
    sort: Sort = Sort.NEWEST
    after: (
        Annotated[str, Meta(description="The `next` of the previous page, with the same filters and order.")] | None
    ) = None
    counts: Annotated[bool, Meta(description="Also return the numbers of jobs by state.")] = False


class ListQuery(NamedTuple):
    """The jobs that a client requests. `counts`: whether it also requests their numbers."""

    which: Filter
    paging: Paging
    counts: bool


def list_query(query: MultiDict[str, str], among: frozenset[JobStatus] | None) -> ListQuery:
    """Parse the query of a list of jobs with a status `among` these; None for all. Raises InvalidInput."""
    given = dict[str, object]()
    for name, values in query.lists():
        values = [value for value in values if value]  # forms send `?status=` for every status
        if name in REPEATABLE:
            given[name] = values
        elif len(values) > 1 and name in PageQuery.__struct_fields__:
            raise InvalidInput(f"the query is wrong: {name[:60]} is given {len(values)} times")
        elif values:
            given[name] = values[0]
    given["status"] = [_status(one) for text in query.getlist("status") for one in text.split(",") if one]
    labels = [_label(text) for text in query.getlist("label") if text]
    parsed = parsed_query(given, PageQuery)
    if parsed.host is not None:
        labels.append(("host", parsed.host))
    if parsed.after is not None and parsed.offset:
        raise InvalidInput("the query is wrong: after and offset exclude each other")
    statuses = frozenset(parsed.status) or frozenset(JobStatus)
    if among is not None:
        statuses &= among
    if parsed.sort is Sort.FINISHED:
        statuses &= FINISHED
    after = None if parsed.after is None else _position(parsed.after, parsed.sort)
    counted = () if not parsed.counts else JobStatus if among is None else among
    # Clients that know no `next` rely on the total, and on pages with `limit` jobs.
    limited = bool(parsed.q or parsed.attention or parsed.counts or after or parsed.sort is not Sort.NEWEST)
    return ListQuery(
        Filter(statuses, parsed.kind, tuple(dict.fromkeys(labels)), _words(parsed.q or ""), parsed.attention),
        Paging(min(parsed.limit, MAX_PAGE), parsed.offset, parsed.sort, after, tuple(counted), limited),
        parsed.counts,
    )


def token_of(position: Position, sort: Sort) -> str:
    """Return the token of the page after a position."""
    name = f".{urlsafe_b64encode(position.name.encode()).decode().rstrip('=')}" if sort is Sort.NAME else ""
    return f"{sort.name.lower()}.{position.place}{name}"


def _position(token: str, sort: Sort) -> Position:
    """Return the position of a token. Raises InvalidInput."""
    found = _TOKEN.fullmatch(token)
    name: str | None = None
    if found is not None and found[1] in (one.name.lower() for one in Sort):
        if found[1] != sort.name.lower():
            raise InvalidInput(f"the query is wrong: after is from a list in another order than {sort}")
        with suppress(ValueError):  # also of the encoding
            name = "" if found[3] is None else urlsafe_b64decode(found[3] + "==").decode()
    if found is None or name is None:
        raise InvalidInput(f"the query is wrong: after {token[:60]!r} is not the next of a page")
    return Position(int(found[2]), name)


def _words(text: str) -> tuple[str, ...]:
    """Return the words of a search. Raises InvalidInput."""
    words = tuple(dict.fromkeys(text.split()))
    if len(words) > MAX_WORDS:
        raise InvalidInput(f"the query is wrong: q has more than {MAX_WORDS} words")
    if unprintable := [letter for word in words for letter in word if ord(letter) < ord(" ")]:
        raise InvalidInput(f"the query is wrong: q contains the control character {unprintable[0]!r}")
    return words


def _status(text: str) -> str:
    if text not in tuple(JobStatus):
        raise InvalidInput(f"the query is wrong: there is no status {text[:60]!r} (known: {', '.join(JobStatus)})")
    return text


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise InvalidInput(f"the query is wrong: label {text[:60]!r} is not of the form NAME=VALUE")
    return key, value
