"""The gate before the application: every request over HTTP passes it, or is refused with a JSON body."""

import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, cast

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from hypercorn.typing import Scope as AnyScope

from progressd.auth.authenticator import Authenticator
from progressd.auth.client_address import counted_as
from progressd.auth.identity import Identity, Scope, require
from progressd.auth.origin import check_host, check_origin
from progressd.auth.rate_limit import Headers, RateLimitState, RequestRates
from progressd.config.settings import Settings
from progressd.core.errors import OutOfScope, ProgressdError, RateLimited, Unauthorized
from progressd.core.messages import ALL_JOBS, encode
from progressd.http.asgi import answer_at_once
from progressd.http.body import SAFE
from progressd.http.transfers import Transfers
from progressd.net.headers import header

WHO_AM_I: Final = "/api/auth/status"  # what is public too, and about the key
PUBLIC: Final = frozenset(
    {
        "/",
        "/favicon.ico",
        WHO_AM_I,
        "/api/docs",
        "/api/health",
        "/api/openapi.json",
        "/api/rate-limit/status",
    }
)
HEALTH: Final = "/api/health"  # which probes ask all the time, and whose 503 is what they want to know: not counted
PUBLIC_BELOW: Final = ("/static/", "/api/health/")
OF_JOBS: Final = ("/api/jobs", "/api/batch", "/api/events", "/api/convert", "/api/stats", "/api/token", "/ws")
OF_TOPICS: Final = ("/api/jobs/", "/api/batch/", "/ws")
OF_ALL_TOPICS: Final = (*OF_TOPICS, "/api/jobs", "/api/events")
UPLOADS: Final = frozenset({"/api/convert", "/api/batch"})
DOWNLOAD: Final = re.compile(r"/api/jobs/[^/]+/download")
OF_TOKENS: Final = re.compile(r"/api/((jobs|batch)/[^/]+/)?token")  # who may look may have somebody else look
REFUSALS: Final = frozenset({401, 403, 408, 413, 415, 429, 503, 507})  # for want of a right, of room or of time
IDENTITY: Final = "progressd.who"  # the key in an ASGI scope


class RefusalCounter:
    """Sends a response; `marks` are headers that it gets beside its own, `begun` is whether there is one already.

    `refused` counts those that say so, whoever answers, by their status.
    """

    def __init__(self, send: ASGISendCallable, refused: Counter[str]) -> None:
        self._send = send
        self._refused = refused
        self.marks: list[tuple[bytes, bytes]] = []
        self.begun = False

    async def __call__(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            if message["status"] in REFUSALS:
                self._refused[str(message["status"])] += 1
            message = {**message, "headers": [*message["headers"], *self.marks]}
        await self._send(message)


class AccessMiddleware:
    """An ASGI application around another, which gets only what may pass."""

    def __init__(
        self,
        app: ASGIFramework,
        settings: Settings,
        authenticator: Authenticator,
        rate_limits: RequestRates,
        refused: Counter[str],
    ) -> None:
        """`refused` counts the requests that are refused, here or behind the gate, by the status."""
        self._app = app
        self._settings = settings
        self._authenticator = authenticator
        self.transfers = Transfers(settings)
        self._rate_limits = rate_limits
        self.refused = refused

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._settings = settings
        self.transfers.use(settings)

    async def __call__(self, scope: AnyScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http":
            answering = RefusalCounter(send, Counter() if scope["path"].startswith(HEALTH) else self.refused)
            try:
                answering.marks = self.count(cast("Mapping[str, Any]", scope))
                who = self.admit(scope)
                with trio.CancelScope() as serving, self._authenticator.held(who, serving.cancel):
                    await self._hand_on(scope, who, receive, answering)
                if serving.cancelled_caught:
                    self.admit(scope)
                    raise Unauthorized("the key has changed meanwhile: ask again")
            except ProgressdError as error:
                if answering.begun:
                    return
                if isinstance(error, RateLimited):
                    answering.marks = _standing_marks(self.standing(cast("Mapping[str, Any]", scope)))
                await _refuse(error, receive, answering)
            return
        await self._app(scope, receive, send)

    def limits(self, scope: Mapping[str, Any]) -> bool:
        """Whether the sender of a request may ask only so often."""
        return self._rate_limits.limits(*_sender(scope))

    def count(self, scope: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
        """Count a request; the headers that say how often the client may still ask. Raises RateLimited."""
        path = scope["path"]
        if not path.startswith("/api/") or path.startswith(HEALTH):
            return []
        left = self._rate_limits.take(*_sender(scope))
        return _standing_marks(left) if left is not None else []

    def standing(self, scope: Mapping[str, Any]) -> RateLimitState:
        """How often it may still ask."""
        return self._rate_limits.standing(*_sender(scope))

    def address(self, scope: Mapping[str, Any]) -> str:
        """Where it comes from, also behind proxies."""
        return self._rate_limits.address(*_sender(scope))

    async def _hand_on(
        self, scope: HTTPScope, who: Identity, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Have the application answer. Raises TooManyUploads, Stalled."""
        if scope["method"] == "POST" and scope["path"] in UPLOADS:
            sender = _sender(cast("Mapping[str, Any]", scope))
            client = who.key or counted_as(self._rate_limits.address(*sender))
            with self.transfers.uploading(client, receive, unlimited=not self._rate_limits.limits(*sender)) as upload:
                await self._app(scope, upload.receive, send)
        elif DOWNLOAD.fullmatch(scope["path"]):
            with self.transfers.under_way():
                await self._app(scope, receive, send)
        else:
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
            check_origin(header(scope["headers"], b"origin"), host, server)

    def _check_key(self, scope: HTTPScope) -> Identity:
        action = action_of(scope["method"], scope["path"])
        if action is None and scope["path"] != WHO_AM_I:
            who = self._authenticator.anybody
        else:
            query = scope["query_string"].decode("latin-1") if scope["method"] in SAFE else None
            who = self._authenticator.who(list(scope["headers"]), query)
        if action is not None:
            require(who, action)
            _require_theirs(who, scope["path"])
        cast("dict[str, Any]", scope)[IDENTITY] = who
        return who


def _sender(scope: Mapping[str, Any]) -> tuple[str, Headers]:
    """The peer of a request, and its headers."""
    return scope["client"][0] if scope["client"] else "unix", scope["headers"]


def _standing_marks(left: RateLimitState) -> list[tuple[bytes, bytes]]:
    reset = math.ceil(time.time() + left.reset_in)
    said = {"limit": left.per_minute, "remaining": left.remaining, "reset": reset}
    return [(f"x-ratelimit-{name}".encode(), str(value).encode()) for name, value in said.items()]


def _require_theirs(who: Identity, path: str) -> None:
    if who.topic is not None and not path.startswith(OF_ALL_TOPICS if who.topic == ALL_JOBS else OF_TOPICS):
        raise OutOfScope(f"this token is for {who.topic}")
    if who.bound and not path.startswith(OF_JOBS):
        raise OutOfScope("this is about all jobs, and not only about those of this key")


def action_of(method: str, path: str) -> Scope | None:
    """What a request needs the right to do; None: it is for everybody."""
    if method == "OPTIONS" or path in PUBLIC or path.startswith(PUBLIC_BELOW):
        return None
    looks = method in SAFE or (method == "POST" and OF_TOKENS.fullmatch(path))
    return Scope.READ if looks else Scope.WRITE


def who_asks(scope: Mapping[str, Any]) -> Identity:
    """Who sent a request that has passed the gate."""
    return cast("Identity", scope[IDENTITY])


async def _refuse(error: ProgressdError, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    body = encode(error.body())
    fields = {**error.headers(), "Content-Type": "application/json", "Content-Length": str(len(body))}
    await answer_at_once(receive, send, error.status, fields, body)
