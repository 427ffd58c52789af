"""CORS (Fetch §3.2): pages of the sites in `server.allowed_origins` may read responses and send preflights."""

from typing import Final

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from hypercorn.typing import Scope as AnyScope

from progressd.http.asgi import respond
from progressd.http.context import ServerState
from progressd.net.request import header

METHODS: Final = "GET POST PUT DELETE OPTIONS"
ALLOWED_HEADERS: Final = "Content-Type Authorization X-API-Key Idempotency-Key If-None-Match Last-Event-ID"
EXPOSED_HEADERS: Final = (
    "ETag Retry-After Content-Disposition Idempotency-Replayed "
    "X-RateLimit-Limit X-RateLimit-Remaining X-RateLimit-Reset"
)
MAX_AGE: Final = 86400  # seconds

_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": METHODS.replace(" ", ", "),
    "Access-Control-Allow-Headers": ALLOWED_HEADERS.replace(" ", ", "),
    "Access-Control-Max-Age": str(MAX_AGE),
}


class CORSMiddleware:
    """An ASGI application that wraps another and adds the CORS headers to its responses."""

    def __init__(self, app: ASGIFramework, state: ServerState) -> None:
        self._app = app
        self._state = state

    def vary(self) -> list[tuple[bytes, bytes]]:
        """Return the Vary header: the response depends on the origin, even if the request has no Origin."""
        return [(b"vary", b"Origin")] if self._state.settings.server.allowed_origins else []

    async def __call__(self, scope: AnyScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Respond to preflights of allowed sites, which have no credentials; pass all other requests on."""
        origins = self._state.settings.server.allowed_origins
        if scope["type"] != "http" or not origins:
            await self._app(scope, receive, send)
            return
        origin = header(scope["headers"], b"origin")
        allowed = origin in origins
        headers = self.vary()
        if allowed:
            headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
            headers.append((b"access-control-expose-headers", EXPOSED_HEADERS.replace(" ", ", ").encode()))

        async def send_with_headers(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        preflight = scope["method"] == "OPTIONS" and header(scope["headers"], b"access-control-request-method")
        if allowed and preflight:
            await respond(receive, send_with_headers, 204, _PREFLIGHT)
        else:
            await self._app(scope, receive, send_with_headers)
