"""The REST application: its blueprints, its page, and one shape for every error."""

from pathlib import Path
from typing import Final

import structlog
from quart import Response, current_app, request
from werkzeug.exceptions import HTTPException

from progressd.core.errors import InsufficientStorage, ProgressdError, Unavailable
from progressd.http.context import AppContext, RestApp, json_response
from progressd.http.middleware.compression import compressed
from progressd.http.openapi.operations import OperationSpec
from progressd.http.routes import batch, convert, docs, health, jobs, metrics, report, sse, stats, tokens
from progressd.net.query import require_known
from progressd.system.transient import passes

WEBUI: Final = Path(__file__).parent.parent / "webui"

log = structlog.get_logger(__name__)


def build_app(parts: AppContext) -> RestApp:
    """The application over the daemon's parts."""
    app = RestApp("progressd", static_folder=str(WEBUI), static_url_path="/static")
    app.services = parts
    # How long a client may take is decided piece by piece, not for a whole upload or download.
    app.config.update(BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = 0  # revalidate, so that an upgrade never mixes old modules with new ones
    app.url_map.merge_slashes = False  # its redirect would name the scheme and host that a proxy has hidden
    for module in (tokens, convert, batch, report, sse, jobs, health, stats, metrics, docs):
        app.register_blueprint(module.blueprint)
    app.add_url_rule("/", view_func=_page)
    app.add_url_rule("/ws", view_func=_not_a_websocket, defaults={"path": ""})
    app.add_url_rule("/ws/<path:path>", view_func=_not_a_websocket)
    app.register_error_handler(ProgressdError, _refused)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _failed)
    app.before_request(_check_query)
    app.after_request(_compressed)
    return app


async def _check_query() -> None:
    view = current_app.view_functions.get(request.endpoint or "")
    operation: OperationSpec | None = getattr(view, "operation", None)
    if operation is not None:
        require_known(request.args, *operation.query)


async def _page() -> Response:
    return await current_app.send_static_file("index.html")


async def _not_a_websocket(path: str) -> Response:
    """What gets here is no handshake, or not a good one."""
    headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    tried = request.headers.get("Upgrade", "").lower() == "websocket"
    if tried and request.headers.get("Sec-WebSocket-Version", "13") == "13":
        return json_response(
            {"error": "this is not a WebSocket handshake in HTTP/1.1 as in RFC 6455, section 4.1"}, 400
        )
    return json_response({"error": "this is a WebSocket, version 13: connect with an upgrade"}, 426, headers)


async def _refused(error: ProgressdError) -> Response:
    if isinstance(error, InsufficientStorage):
        log.info("request refused", method=request.method, path=request.path, error=repr(error.__cause__ or error))
    return json_response(error.body(), error.status, error.headers())


async def _http_error(error: HTTPException) -> Response:
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Location", "Content-Range")}
    said = {
        404: f"there is nothing at {request.path[:200]}",
        405: f"{request.method} is not possible at {request.path[:200]}",
    }
    sentence = said.get(error.code or 500) or error.description or error.name
    return json_response({"error": sentence}, error.code or 500, headers)


async def _failed(error: Exception) -> Response:
    if passes(error):
        what = error.strerror if isinstance(error, OSError) else "no memory left"
        log.warning("request cannot be answered for now", method=request.method, path=request.path, error=repr(error))
        return await _refused(Unavailable(f"the daemon cannot answer this for now ({what})"))
    log.error("request failed", method=request.method, path=request.path, error=repr(error), exc_info=error)
    return json_response({"error": "the daemon failed to answer this; its log says why"}, 500)


async def _compressed(response: Response) -> Response:
    return await compressed(request, response)
