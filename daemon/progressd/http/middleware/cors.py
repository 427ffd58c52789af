"""CORS: lets the pages of the sites in `server.allowed_origins` read answers, and ask before they send (Fetch §3.2)."""

from typing import Final

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from hypercorn.typing import Scope as AnyScope

from progressd.config.settings import Settings
from progressd.http.asgi import answer_at_once
from progressd.net.headers import header

METHODS: Final = "GET POST PUT DELETE OPTIONS"
ASKED_WITH: Final = "Content-Type Authorization X-API-Key Idempotency-Key If-None-Match Last-Event-ID"
SHOWN: Final = (
    "ETag Retry-After Content-Disposition Idempotency-Replayed "
    "X-RateLimit-Limit X-RateLimit-Remaining X-RateLimit-Reset"
)
MAX_AGE: Final = 86400  # seconds

_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": METHODS.replace(" ", ", "),
    "Access-Control-Allow-Headers": ASKED_WITH.replace(" ", ", "),
    "Access-Control-Max-Age": str(MAX_AGE),
}


class CORSMiddleware:
    """An ASGI application around another, whose answers it marks for the pages that may read them."""

    def __init__(self, app: ASGIFramework, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._settings = settings

    def depends(self) -> list[tuple[bytes, bytes]]:
        """The header that tells caches that other sites get other answers, also in one for a request of none."""
        return [(b"vary", b"Origin")] if self._settings.server.allowed_origins else []

    async def __call__(self, scope: AnyScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """A preflight of an allowed site is answered here: it comes without credentials."""
        if scope["type"] != "http" or not self._settings.server.allowed_origins:
            await self._app(scope, receive, send)
            return
        origin = header(scope["headers"], b"origin")
        allowed = origin in self._settings.server.allowed_origins
        marks = self.depends()
        if allowed:
            marks.append((b"access-control-allow-origin", origin.encode("latin-1")))
            marks.append((b"access-control-expose-headers", SHOWN.replace(" ", ", ").encode()))

        async def marked(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *marks]}
            await send(message)

        asks = scope["method"] == "OPTIONS" and header(scope["headers"], b"access-control-request-method")
        if allowed and asks:
            await answer_at_once(receive, marked, 204, _PREFLIGHT)
        else:
            await self._app(scope, receive, marked)
