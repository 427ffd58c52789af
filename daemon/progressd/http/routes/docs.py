"""The OpenAPI document: JSON at `/api/openapi.json`, and a page at `/api/docs`."""

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import msgspec
from jinja2 import Environment, FileSystemLoader
from quart import Blueprint, Quart, Response, current_app

from progressd.http.context import request_context
from progressd.http.openapi import described, openapi_document

CACHING: Final = {"Cache-Control": "no-cache"}
TEMPLATES: Final = Path(__file__).parent.parent / "templates"
_OBJECT: Final = {"type": "object", "description": "An OpenAPI 3.1 document."}

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
    """Return the document and the page. Building them takes 50 ms, and they never change."""
    document = openapi_document(app, base_path)
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    templates.globals["json"] = partial(json.dumps, indent=2, ensure_ascii=False)
    return msgspec.json.encode(document), templates.get_template("docs.html").render(document=document)
