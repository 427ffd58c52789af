"""The gate before the application: every request over HTTP passes it, or is refused with a JSON body."""

from collections.abc import Iterable

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope

from progressd.auth.browsers import check_host, check_origin
from progressd.config import Settings
from progressd.core.errors import ProgressdError
from progressd.core.messages import encode
from progressd.rest.headers import HEADERS

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """An ASGI application around another, which gets only what may pass."""

    def __init__(self, app: ASGIFramework, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http":
            try:
                self._check_browser(scope)
            except ProgressdError as error:
                await _refuse(error, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_browser(self, scope: HTTPScope) -> None:
        """Browsers let any page send a form, or JSON as text, to any host; only the answer is kept from it."""
        server = self._settings.server
        host = header(scope["headers"], b"host")
        check_host(host, server)
        if scope["method"] not in SAFE or scope["path"].endswith("/events"):
            check_origin(header(scope["headers"], b"origin"), host, server.allowed_origins)


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The value of a request header, "" where absent; `name` in lower case."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")


async def _refuse(error: ProgressdError, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer, and let go of what still comes: unread, it would keep Hypercorn from ending the response."""
    body = encode(error.body())
    fields = {**HEADERS, **error.headers(), "Content-Type": "application/json", "Content-Length": str(len(body))}
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_discard, receive)
        await send({"type": "http.response.start", "status": error.status, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})
        nursery.cancel_scope.cancel()


async def _discard(receive: ASGIReceiveCallable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
