"""What each request takes and answers, said at its handler, for the OpenAPI document and the reference page."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from msgspec import Struct

JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"
FORM: Final = "multipart/form-data"

View = TypeVar("View", bound=Callable[..., Any])


class OperationSpec(Struct, frozen=True, kw_only=True):
    """One request. A type stands for the schema that msgspec makes of it, a mapping is a schema."""

    answers: Mapping[int, Mapping[str, Any]]  # the good ones: by status, by media type
    errors: tuple[int, ...] = ()  # beside those that every request can have
    query: tuple[type[Struct], ...] = ()
    headers: tuple[str, ...] = ()  # that a client may send
    body: Mapping[str, Any] = {}  # by media type
    body_required: bool = True


def described(
    reply: Any = None, *, status: int = 200, also: Mapping[int, Mapping[str, Any]] | None = None, **fields: Any
) -> Callable[[View], View]:
    """Say what a view answers: JSON of the type `reply`, with `status`; `also`: other good answers."""
    answers = {**({status: {JSON: reply}} if reply is not None else {}), **(also or {})}
    operation = OperationSpec(answers=answers, **fields)

    def describe(view: View) -> View:
        view.operation = operation  # type: ignore[attr-defined]
        return view

    return describe
