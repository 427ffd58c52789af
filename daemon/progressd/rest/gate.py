"""The gate before the application: every request over HTTP passes it, or is refused with a JSON body."""

from collections.abc import Mapping
from typing import Any, Final, cast

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, HTTPScope
from hypercorn.typing import Scope as AnyScope

from progressd.auth.admission import Admission
from progressd.auth.browsers import check_host, check_origin
from progressd.auth.identity import Identity, Scope, decide
from progressd.config import Settings
from progressd.core.errors import OutOfScope, ProgressdError
from progressd.core.messages import ALL_JOBS, encode
from progressd.rest.headers import HEADERS, header

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
PUBLIC: Final = frozenset({"/", "/favicon.ico", "/api/health", "/api/auth/status", "/api/docs", "/api/openapi.json"})
PUBLIC_BELOW: Final = ("/static/", "/api/health/")
OF_JOBS: Final = ("/api/jobs", "/api/batch", "/api/events", "/api/convert", "/api/stats", "/api/token", "/ws")
OF_TOPICS: Final = ("/api/jobs/", "/api/batch/", "/ws")
WHO: Final = "progressd.who"  # the key in an ASGI scope


class Gate:
    """An ASGI application around another, which gets only what may pass."""

    def __init__(self, app: ASGIFramework, settings: Settings, admission: Admission) -> None:
        self._app = app
        self._settings = settings
        self._admission = admission

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._settings = settings

    async def __call__(self, scope: AnyScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http":
            try:
                who = self.admit(scope)
            except ProgressdError as error:
                await _refuse(error, receive, send)
                return
            with trio.CancelScope() as serving, self._admission.held(who, serving.cancel):
                await self._app(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def admit(self, scope: HTTPScope) -> Identity:
        """Who sends the request, which may pass. Raises what refuses it."""
        self._check_browser(scope)
        return self._check_key(scope)

    def _check_browser(self, scope: HTTPScope) -> None:
        """Browsers let any page send a form, or JSON as text, to any host; only the answer is kept from it."""
        server = self._settings.server
        host = header(scope["headers"], b"host")
        check_host(host, server)
        if scope["method"] not in SAFE or scope["path"].endswith("/events"):
            check_origin(header(scope["headers"], b"origin"), host, server.allowed_origins)

    def _check_key(self, scope: HTTPScope) -> Identity:
        query = scope["query_string"].decode("latin-1") if scope["method"] in SAFE else ""
        who = self._admission.who(list(scope["headers"]), query)
        action = action_of(scope["method"], scope["path"])
        if action is not None:
            decide(who, action)
            _require_theirs(who, scope["path"])
        cast("dict[str, Any]", scope)[WHO] = who
        return who


def _require_theirs(who: Identity, path: str) -> None:
    if who.topic not in (None, ALL_JOBS) and not path.startswith(OF_TOPICS):
        raise OutOfScope(f"this token is for {who.topic}")
    if who.bound and not path.startswith(OF_JOBS):
        raise OutOfScope("this is about all jobs, and not only about those of this key")


def action_of(method: str, path: str) -> Scope | None:
    """What a request needs the right to do; None: it is for everybody."""
    if method == "OPTIONS" or path in PUBLIC or path.startswith(PUBLIC_BELOW):
        return None
    return Scope.READ if method in SAFE or path == "/api/token" or path.endswith("/token") else Scope.WRITE


def who_asks(scope: Mapping[str, Any]) -> Identity:
    """Who sent a request that has passed the gate."""
    return cast("Identity", scope[WHO])


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
