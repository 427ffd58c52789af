"""The query of a list of jobs: its filters, its order, and the token of the next page."""

import re
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct
from werkzeug.datastructures import MultiDict

from progressd.core.errors import InvalidInput
from progressd.core.messages import JobStatus
from progressd.net.request import parsed_query
from progressd.store.base import Filter, Paging, Sort

MAX_PAGE: Final = 1000  # jobs
REPEATABLE: Final = ("status", "label")
_TOKEN: Final = re.compile(r"([a-z]{1,10})\.([0-9]{1,16})", re.ASCII)


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
    host: Annotated[str, Meta(description="The same as `label=host=NAME`.")] | None = None
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
    statuses = frozenset(parsed.status) or None
    if among is not None:
        statuses = among if statuses is None else among & statuses
    after = None if parsed.after is None else _position(parsed.after, parsed.sort)
    return ListQuery(
        Filter(statuses, parsed.kind, tuple(labels)),
        Paging(min(parsed.limit, MAX_PAGE), parsed.offset, parsed.sort, after),
        parsed.counts,
    )


def token_of(position: int, sort: Sort) -> str:
    """Return the token of the page after a position."""
    return f"{sort.name.lower()}.{position}"


def _position(token: str, sort: Sort) -> int:
    """Return the position of a token. Raises InvalidInput."""
    found = _TOKEN.fullmatch(token)
    if found is None or found[1] not in (one.name.lower() for one in Sort):
        raise InvalidInput(f"the query is wrong: after {token[:60]!r} is not the next of a page")
    if found[1] != sort.name.lower():
        raise InvalidInput(f"the query is wrong: after is from a list in another order than {sort}")
    return int(found[2])


def _status(text: str) -> str:
    if text not in tuple(JobStatus):
        raise InvalidInput(f"the query is wrong: there is no status {text[:60]!r} (known: {', '.join(JobStatus)})")
    return text


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise InvalidInput(f"the query is wrong: label {text[:60]!r} is not of the form NAME=VALUE")
    return key, value
