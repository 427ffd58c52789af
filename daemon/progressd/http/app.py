"""The Quart application: its routes, the web page, and the JSON of every error."""

import gzip
from typing import Final

import structlog
import trio
from quart import Response, current_app, request
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, NotFound

from progressd.core.errors import CODES, InsufficientStorage, InvalidInput, ProgressdError, Unavailable
from progressd.http import openapi, pages
from progressd.http.body import BackpressuredConnection, BackpressuredRequest
from progressd.http.context import json_response
from progressd.http.job_cache import MIN_GZIP_BYTES
from progressd.http.openapi import OperationSpec
from progressd.http.pages import HTML, VARY, error_page, prefers_page
from progressd.http.response import FileResponse
from progressd.http.routes import (
    badge,
    batch,
    health,
    jobs,
    ping,
    pipelines,
    previews,
    report,
    sse,
    stats,
    submission,
    tokens,
    uploads,
)
from progressd.http.routes import log as log_of_job
from progressd.http.static_files import FILES, WEBUI
from progressd.net.request import require_known
from progressd.system.transient_errors import is_transient

MAX_INLINE_BYTES: Final = 65536  # compressed in the event loop, in a millisecond; a larger body in a thread
LEVEL: Final = 3
MAX_ACCEPT_ENCODING: Final = 200  # characters: browsers send 23, and parsing 15,000 takes 30 ms
TEXT: Final = frozenset({"application/json", "application/openmetrics-text", "text/html", "text/plain"})

log = structlog.get_logger(__name__)


class RestApp(QuartTrio):
    """Quart with request bodies that do not accumulate in memory."""

    asgi_http_class = BackpressuredConnection
    request_class = BackpressuredRequest
    response_class = FileResponse

    async def send_static_file(self, filename: str) -> Response:
        """Send a file of the web page."""
        found = FILES.find(filename)
        if found is None:
            raise NotFound
        file, cache_control = found
        compressed = file.compressed if _accepts_gzip() else None
        etags = {file.hash, f"{file.hash}-gzip"}
        response = Response(compressed or file.body, 200, {"Cache-Control": cache_control})
        response.content_type = file.content_type
        if etags.intersection(request.if_none_match.as_set(include_weak=True)):
            response = Response(b"", 304, {"Cache-Control": cache_control})
            del response.headers["Content-Type"], response.headers["Content-Length"]
        elif compressed is not None:
            response.content_encoding = "gzip"
        response.set_etag(file.hash if compressed is None else f"{file.hash}-gzip")
        response.vary.add("Accept-Encoding")
        return response


def build_app() -> RestApp:
    """Return the application. It serves only requests that AccessMiddleware has passed on."""
    app = RestApp("progressd", static_folder=str(WEBUI), static_url_path="/static")
    app.config.update(BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)  # timeouts apply to each chunk, not to a whole transfer
    app.url_map.merge_slashes = False  # its redirect would contain the scheme and host behind a proxy
    for module in (
        badge,
        tokens,
        submission,
        uploads,
        pipelines,
        batch,
        report,
        sse,
        jobs,
        previews,
        log_of_job,
        ping,
        health,
        stats,
        openapi,
        pages,
    ):
        app.register_blueprint(module.blueprint)
    app.add_url_rule("/ws", view_func=_not_a_websocket, defaults={"path": ""})
    app.add_url_rule("/ws/<path:path>", view_func=_not_a_websocket)
    app.register_error_handler(ProgressdError, _progressd_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    app.before_request(_check_query)
    app.after_request(_compressed)
    return app


async def _check_query() -> None:
    view = current_app.view_functions.get(request.endpoint or "")
    operation: OperationSpec | None = getattr(view, "operation", None)
    if operation is not None:
        require_known(request.args, *operation.query)


async def _not_a_websocket(path: str) -> Response:
    """Reject a request to a WebSocket endpoint that is not a valid handshake."""
    headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
    if upgrade and request.headers.get("Sec-WebSocket-Version", "13") == "13":
        sentence, status = "invalid WebSocket handshake: see RFC 6455, section 4.1", 400
        return json_response({"error": sentence, "code": CODES[status]}, status)
    sentence, status = "this is a WebSocket, version 13: connect with an upgrade", 426
    return json_response({"error": sentence, "code": CODES[status]}, status, headers)


async def _progressd_error(error: ProgressdError) -> Response:
    if isinstance(error, InsufficientStorage):
        log.info(
            "request rejected",
            method=request.method,
            path=ping.masked(request.path),
            error=repr(error.__cause__ or error),
        )
    return _error(error.status, error.code, str(error), error.body(), error.headers())


async def _http_error(error: HTTPException) -> Response:
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Location", "Content-Range")}
    path = request.path[:200]
    sentences = {404: f"nothing found at {path}", 405: f"{path} does not support {request.method}"}
    sentence = sentences.get(error.code or 500) or error.description or error.name
    code = CODES.get(error.code or 500, InvalidInput.code)
    return _error(error.code or 500, code, sentence, {"error": sentence, "code": code}, headers)


def _error(status: int, code: str, sentence: str, body: dict[str, object], headers: dict[str, str]) -> Response:
    """Return an error as JSON, or as a page to a person who opened the path in a browser."""
    if prefers_page(request.method, request.path, request.scope["headers"]):
        page = error_page(status, sentence, code, request.path, request.scope["headers"])
        return Response(page, status, {**headers, "Vary": VARY, "Cache-Control": "no-store"}, content_type=HTML)
    return json_response(body, status, headers)


async def _unexpected_error(error: Exception) -> Response:
    if is_transient(error):
        reason = error.strerror if isinstance(error, OSError) else "out of memory"
        log.warning("request failed for now", method=request.method, path=ping.masked(request.path), error=repr(error))
        return await _progressd_error(Unavailable(f"the daemon cannot respond at the moment: {reason}"))
    path = ping.masked(request.path)
    log.error("request failed", method=request.method, path=path, error=repr(error), exc_info=error)
    return json_response({"error": "internal error: see the daemon's log", "code": CODES[500]}, 500)


async def _compressed(response: Response) -> Response:
    """Return the response, compressed with gzip if the client accepts that and the response is long enough."""
    body = response.response
    if response.mimetype not in TEXT or not isinstance(body, DataBody) or response.content_encoding:
        return response
    response.vary.add("Accept-Encoding")
    if len(body.data) < MIN_GZIP_BYTES or response.status_code != 200 or not _accepts_gzip():
        return response
    inline = len(body.data) <= MAX_INLINE_BYTES
    response.set_data(_gzipped(body.data) if inline else await trio.to_thread.run_sync(_gzipped, body.data))
    response.content_encoding = "gzip"
    etag, weak = response.get_etag()
    if etag is not None and not weak:
        response.set_etag(etag, weak=True)  # the same content, encoded differently
    return response


def _accepts_gzip() -> bool:
    """Return whether the client accepts gzip (RFC 9110 §12.5.3)."""
    short = len(request.headers.get("Accept-Encoding", "")) <= MAX_ACCEPT_ENCODING
    return short and bool(request.accept_encodings["gzip"])


def _gzipped(body: bytes) -> bytes:
    return gzip.compress(body, LEVEL, mtime=0)
