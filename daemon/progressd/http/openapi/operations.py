"""Descriptions of operations for the OpenAPI document. Each description is next to its handler."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from msgspec import Struct

JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"
FORM: Final = "multipart/form-data"

View = TypeVar("View", bound=Callable[..., Any])


class OperationSpec(Struct, frozen=True, kw_only=True):
    """An operation. A type represents its msgspec schema; a mapping is a schema."""

    answers: Mapping[int, Mapping[str, Any]]  # successful responses, by status and media type
    errors: tuple[int, ...] = ()  # error statuses besides the common ones
    query: tuple[type[Struct], ...] = ()
    headers: tuple[str, ...] = ()  # request headers
    body: Mapping[str, Any] = {}  # request body by media type
    body_required: bool = True


def described(
    response: Any = None, *, status: int = 200, also: Mapping[int, Mapping[str, Any]] | None = None, **fields: Any
) -> Callable[[View], View]:
    """Describe a view that returns JSON of the type `response` with `status`; `also`: other successful responses."""
    answers = {**({status: {JSON: response}} if response is not None else {}), **(also or {})}
    operation = OperationSpec(answers=answers, **fields)

    def describe(view: View) -> View:
        view.operation = operation  # type: ignore[attr-defined]
        return view

    return describe
