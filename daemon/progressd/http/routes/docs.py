"""The OpenAPI document at `/api/openapi.json`, and as a page at `/api/docs`."""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from html import escape
from typing import Any

import msgspec
from quart import Blueprint, Quart, Response, current_app

from progressd.http.context import request_context
from progressd.http.openapi.document import openapi_document
from progressd.http.openapi.operations import described

CACHING = {"Cache-Control": "no-cache"}
_OBJECT = {"type": "object", "description": "An OpenAPI 3.1 document."}
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>progressd: REST</title>
<link rel="icon" href="../static/favicon.svg">
<link rel="stylesheet" href="../static/reference.css">
<h1>progressd {version}</h1>
<p>{about} The same as <a href="openapi.json">OpenAPI</a>.</p>
<nav>{contents}</nav>
{operations}
<h2 id="schemas">Schemas</h2>
{schemas}
</html>
"""

blueprint = Blueprint("reference", __name__, url_prefix="/api")


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
    """Return the document and the page. They take 50 ms, and never change."""
    document = openapi_document(app, base_path)
    return msgspec.json.encode(document), reference_page(document)


def reference_page(document: Mapping[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    links = [
        f'<a href="#{escape(operation["operationId"])}"><b>{method.upper()}</b> {escape(path)}</a>'
        for path, method, operation in operations
    ]
    return _PAGE.format(
        version=escape(document["info"]["version"]),
        about=escape(document["info"]["description"]),
        contents="\n".join(links),
        operations="\n".join(_operation(*one) for one in operations),
        schemas="\n".join(
            f'<section id="{escape(name)}"><h3>{escape(name)}</h3>{_code(schema)}</section>'
            for name, schema in document["components"]["schemas"].items()
        ),
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f'<section id="{escape(operation["operationId"])}"><h2><b>{method.upper()}</b> {escape(path)}</h2>',
        f"<p>{escape(operation['summary'])}.</p>",
        f"<p>{escape(operation['description'])}</p>" if "description" in operation else "",
    ]
    if operation["parameters"]:
        rows = (
            (
                one["name"],
                one["in"],
                _short(one["schema"]),
                one.get("description", one["schema"].get("description", "")),
            )
            for one in operation["parameters"]
        )
        parts.append(_table(("parameter", "in", "", ""), rows))
    if "requestBody" in operation:
        parts += [f"<h4>Body</h4>{_content(operation['requestBody']['content'])}"]
    parts.append("<h4>Responses</h4>")
    answers = operation["responses"].items()
    parts.append(_table(("status", ""), ((status, answer["description"]) for status, answer in answers)))
    parts += [_content(answer["content"]) for status, answer in answers if status < "400" and "content" in answer]
    return "\n".join([*parts, "</section>"])


def _content(content: Mapping[str, Any]) -> str:
    return "".join(
        f"<p><code>{escape(media_type)}</code> {_short(given['schema'])}</p>"
        + (_code(given["example"]) if "example" in given else "")
        for media_type, given in content.items()
    )


def _short(schema: Mapping[str, Any]) -> str:
    """Return a schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_short, schema["anyOf"]))
    words = [str(schema[key]) for key in ("type", "format", "pattern") if key in schema]
    words += [f"{key} {json.dumps(schema[key])}" for key in ("minimum", "maximum", "default") if key in schema]
    return escape(" ".join(words))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table as HTML. Cells of the third column are HTML already; all others are text."""
    titles = "".join(f"<th>{escape(title)}" for title in head)
    lines = (
        "<tr>" + "".join(f"<td>{cell if column == 2 else escape(cell)}" for column, cell in enumerate(row))
        for row in rows
    )
    return f"<table><tr>{titles}{''.join(lines)}</table>"


def _code(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
