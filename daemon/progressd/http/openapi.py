"""The OpenAPI 3.1 document, built from the routes and their descriptions: as JSON, and as a page."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from jinja2 import Environment, FileSystemLoader
from msgspec import UNSET, Struct, UnsetType
from quart import Blueprint, Quart, Response, current_app

from progressd import __version__
from progressd.core.errors import CODES
from progressd.http.context import request_context
from progressd.http.schemas import JSON

blueprint = Blueprint("reference", __name__, url_prefix="/api")

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


class ErrorBody(Struct, frozen=True):
    """The reason as a sentence. 401, 403 and 429 have a word in `error` and the sentence in `message`.

    `code` is a word for programs: docs/rest.md lists the codes. `retry_after` is in seconds.
    """

    error: str
    code: str
    message: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET


COMMON_ERRORS: Final = (400, 401, 403, 429, 500, 503)
ERRORS: Final = {
    400: "The request is malformed: its head, an id, the query or the body.",
    401: "A key is required, or this one is unknown, revoked or expired.",
    403: "The key does not allow this, or a page of another site sent the request.",
    404: "Not found, or not visible to this key.",
    408: "The body arrived too slowly, or stopped in the middle.",
    409: "The status does not allow this, or another request with the same `Idempotency-Key` is in progress.",
    410: "The upload has expired.",
    412: "The version of tus in `Tus-Resumable` is missing or not supported.",
    413: "Too large.",
    415: "The pipeline does not accept this type of file.",
    416: "The file has no such range.",
    422: "An option does not exist or cannot have this value, or the `Idempotency-Key` belongs to another request.",
    423: "Another request is adding to this upload.",
    429: "Too many requests; `Retry-After` says when to try again.",
    460: "The body does not have the checksum in `Upload-Checksum`.",
    500: "The daemon failed; its log has details.",
    503: "The daemon is starting or stopping, or its store fails; `Retry-After` says when to try again.",
    507: "The disk is full, or the files of all jobs have reached `limits.max_stored_bytes`.",
}
SUCCESSES: Final = {
    200: "OK.",
    201: "Created.",
    202: "Accepted for processing.",
    204: "Done, or the stream has ended.",
    206: "The requested range.",
    303: "The result is elsewhere, at the URL in `Location`.",
    304: "Not modified.",
}
REQUEST_HEADERS: Final = {
    "Idempotency-Key": "A second request with the same key creates nothing new, and returns the first response.",
    "If-None-Match": "The `ETag` of the last response; 304 if nothing has changed.",
    "Last-Event-ID": "The id of the last event that the client received.",
    "Range": "A range of the file, in bytes.",
    "X-HTTP-Method-Override": "`PATCH` or `DELETE`.",
    "Tus-Resumable": "`1.0.0`, the version of tus.",
    "Upload-Length": "The size of the file in bytes.",
    "Upload-Offset": "The offset of the body's first byte in the file.",
    "Upload-Metadata": "Pairs of a key and a value in base64, separated by commas.",
    "Upload-Checksum": "The checksum of the body: `sha256` or `sha1`, a space, and the checksum in base64.",
}
RESPONSE_HEADERS: Final = {
    "Content-Disposition": ("string", "The file's name."),
    "ETag": ("string", "Send it as `If-None-Match` with the next request."),
    "Location": ("string", "The URL of the result."),
    "Idempotency-Replayed": ("string", "`true` if the first response is returned again."),
    "Retry-After": ("integer", "Seconds."),
    "X-RateLimit-Limit": ("integer", "Requests per minute. Left out for clients without a limit."),
    "X-RateLimit-Remaining": ("integer", "Requests that the client may still send at once."),
    "X-RateLimit-Reset": ("integer", "The time at which the full burst is available again, in seconds since 1970."),
}
FREE_HEADERS: Final = frozenset({"Upload-Metadata", "Upload-Checksum"})  # request headers with spaces
RATE_LIMIT_HEADERS: Final = tuple(name for name in RESPONSE_HEADERS if name.startswith("X-RateLimit-"))
RESPONSE_HEADER_OF: Final = {  # response headers by request header
    "If-None-Match": "ETag",
    "Idempotency-Key": "Idempotency-Replayed",
    "Range": "Content-Disposition",
}
PATH_PARAMETERS: Final[Mapping[str, dict[str, Any]]] = {  # all others are ids
    "key": {"type": "string", "description": "A key with the scope `write`.", "pattern": "^[!-.0-~]+$"},
    "slug": {"type": "string", "description": "The `kind` of the job.", "pattern": "^[A-Za-z0-9_-]{1,200}$"},
    "page_number": {"type": "integer"},
    "signal": {"type": "string", "description": "`start`, `fail`, `log`, or an exit status from 0 to 255."},
}
SECURITY: Final[list[dict[str, list[str]]]] = [{}, {"bearer": []}, {"key": []}]
_REFERENCE: Final = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"<(?:[^:<>]+:)?(\w+)>")

CACHING: Final = {"Cache-Control": "no-cache"}
TEMPLATES: Final = Path(__file__).parent / "templates"
_OBJECT: Final = {"type": "object", "description": "An OpenAPI 3.1 document."}
ID: Final = "03efbe1e-1257-4729-9f9d-14e3b6d6e228"  # the example in paths


def openapi_document(app: Quart, base_path: str) -> dict[str, Any]:
    """Return the OpenAPI document of all described routes."""
    routes = list(_routes(app))
    types = {*_types(operation for _, _, operation, _, _ in routes), ErrorBody}
    ordered = sorted(types, key=lambda type_: str(getattr(type_, "__name__", type_)))
    references, schemas = msgspec.json.schema_components(ordered, schema_hook=_any_json, ref_template=_REFERENCE)
    schema_of = dict(zip(ordered, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, method, operation, view, name in routes:
        described = _operation(path, operation, view, schema_of, schemas)
        if path.startswith("/ping/"):  # the key is in the path
            described["security"] = [{}]
        elif method == "get":
            described["security"] = [*SECURITY, {"token": []}]
        paths.setdefault(path, {})[method] = {"operationId": name, **described}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "progressd",
            "version": __version__,
            "description": "Live progress of long-running jobs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": base_path}],
        "security": SECURITY,
        "tags": [{"name": name} for name in dict.fromkeys(_tag(path) for path in paths)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": {
                name: {"description": description, "schema": {"type": type_}}
                for name, (type_, description) in RESPONSE_HEADERS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "token": {"type": "apiKey", "in": "query", "name": "token"},
            },
        },
    }


def _routes(app: Quart) -> Iterator[tuple[str, str, OperationSpec, Any, str]]:
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        view = app.view_functions[rule.endpoint]
        operation = getattr(view, "operation", None)
        if operation is None:
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield _PARAMETER.sub(r"{\1}", rule.rule), method.lower(), operation, view, rule.endpoint


def _types(operations: Iterable[OperationSpec]) -> Iterator[Any]:
    for operation in operations:
        yield from operation.query
        for content in (*operation.answers.values(), operation.body):
            yield from (given for given in content.values() if not isinstance(given, Mapping))


def _operation(
    path: str, operation: OperationSpec, view: Any, schema_of: Mapping[Any, Any], schemas: Mapping[str, Any]
) -> dict[str, Any]:
    summary, _, rest = cleandoc(view.__doc__ or "").partition("\n\n")
    in_path = re.findall(r"{(\w+)}", path)
    errors = {*COMMON_ERRORS, *operation.errors, *((404,) if in_path else ())}
    described: dict[str, Any] = {
        "summary": " ".join(summary.split()).rstrip("."),
        "tags": [_tag(path)],
        "parameters": [*_path_parameters(in_path), *_query(operation.query, schemas), *_headers(operation.headers)],
        "responses": {
            **{str(status): _success(status, content, schema_of) for status, content in operation.answers.items()},
            **{str(status): _error(status, schema_of) for status in sorted(errors - operation.answers.keys())},
        },
    }
    for status, answer in described["responses"].items():
        if names := [
            *_response_headers(operation, int(status)),
            *(RATE_LIMIT_HEADERS if _tag(path) != "health" else ()),
        ]:
            answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    if rest:
        described["description"] = " ".join(rest.split())
    if operation.body:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": _content(operation.body, schema_of),
        }
    return described


def _path_parameters(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        schema = PATH_PARAMETERS.get(name, {"type": "string", "format": "uuid", "examples": [ID]})
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query(structs: Iterable[type[Struct]], schemas: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for struct in structs:
        for name, schema in schemas[struct.__name__]["properties"].items():
            given = {key: value for key, value in schema.items() if key != "default" or value is not None}
            if "anyOf" in given:  # an optional parameter is null by default, but cannot be null in a query
                [given] = [one for one in given["anyOf"] if one != {"type": "null"}]
            yield {"name": name, "in": "query", "required": False, "schema": given}


def _headers(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        text = {"type": "string", "pattern": "^[!-~]{1,255}$"} if name not in FREE_HEADERS else {"type": "string"}
        yield {"name": name, "in": "header", "required": False, "schema": text, "description": REQUEST_HEADERS[name]}


def _response_headers(operation: OperationSpec, status: int) -> Iterator[str]:
    """Yield the headers of a response, except the rate-limit headers."""
    if status in operation.answers:
        yield from (RESPONSE_HEADER_OF[name] for name in operation.headers if name in RESPONSE_HEADER_OF)
    if status in (429, 503):
        yield "Retry-After"
    if status == 303:
        yield "Location"


def _success(status: int, content: Mapping[str, Any], schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": SUCCESSES.get(status) or ERRORS[status]}
    if content:
        answer["content"] = _content(content, schema_of)
    return answer


def _error(status: int, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    retry = {"retry_after": 5} if status in (429, 503) else {}
    example = {"error": ERRORS[status], "code": CODES[status], **retry}
    return {"description": ERRORS[status], "content": {JSON: {"schema": schema_of[ErrorBody], "example": example}}}


def _content(content: Mapping[str, Any], schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        media_type: {"schema": given if isinstance(given, Mapping) else schema_of[given]}
        for media_type, given in content.items()
    }


def _tag(path: str) -> str:
    return path.removeprefix("/api").split("/")[1]


def _any_json(type_: type) -> dict[str, Any]:
    return {"description": "any JSON"}


@blueprint.get("/openapi.json")
@described(_OBJECT)
async def openapi() -> Response:
    """Return this document."""
    document, _ = _rendered()
    return Response(document, 200, CACHING, content_type="application/json")


@blueprint.get("/docs")
@described(also={200: {"text/html": {"type": "string"}}})
async def docs() -> Response:
    """Return this document as a page."""
    _, page = _rendered()
    return Response(page, 200, CACHING, content_type="text/html; charset=utf-8")


def _rendered() -> tuple[bytes, str]:
    return _render(current_app, request_context().app.settings.server.base_path)


@lru_cache(maxsize=1)
def _render(app: Quart, base_path: str) -> tuple[bytes, str]:
    """Return the document and the page. Building them takes 50 ms, and they never change."""
    document = openapi_document(app, base_path)
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    templates.globals["json"] = partial(json.dumps, indent=2, ensure_ascii=False)
    return msgspec.json.encode(document), templates.get_template("docs.html").render(document=document)
