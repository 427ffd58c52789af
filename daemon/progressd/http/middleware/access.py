"""Access control: identify the client of each HTTP request, count the request, and pass on only permitted requests."""

import math
import re
import time
from collections import Counter
from typing import Any, Final, cast

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from hypercorn.typing import Scope as AnyScope

from progressd.auth.client_address import client_address, counted_as, networks
from progressd.auth.identity import ANONYMOUS, Client, Identity, Scope, require
from progressd.auth.origin import check_host, check_origin
from progressd.auth.rate_limit import RateLimitState
from progressd.core.errors import Forbidden, OutOfScope, ProgressdError, RateLimited, Unauthorized
from progressd.core.messages import ALL_JOBS, encode
from progressd.http.asgi import respond
from progressd.http.body import SAFE
from progressd.http.context import CONTEXT, AppContext, RequestContext
from progressd.http.middleware.job_cache import Headers
from progressd.http.transfers import Transfers
from progressd.net.headers import header

AUTH_STATUS: Final = "/api/auth/status"  # public, but reports on the key
PUBLIC: Final = frozenset(
    {
        "/",
        "/favicon.ico",
        AUTH_STATUS,
        "/api/docs",
        "/api/health",
        "/api/openapi.json",
        "/api/rate-limit/status",
    }
)
HEALTH: Final = "/api/health"  # not counted: probes request it constantly, and expect its 503
PUBLIC_BELOW: Final = ("/static/", "/api/health/")
PINGS: Final = "/ping/"
PING_KEY: Final = re.compile(r"/ping/([^/]+)/")
FOR_BOUND_KEYS: Final = (
    PINGS,
    "/api/jobs",
    "/api/batch",
    "/api/events",
    "/api/convert",
    "/api/stats",
    "/api/token",
    "/ws",
)
FOR_TOPIC_TOKENS: Final = ("/api/jobs/", "/api/batch/", "/ws")
FOR_ALL_JOBS_TOKENS: Final = (*FOR_TOPIC_TOKENS, "/api/jobs", "/api/events")
UPLOADS: Final = frozenset({"/api/convert", "/api/batch"})
DOWNLOAD: Final = re.compile(r"/api/jobs/[^/]+/download")
NEW_TOKEN: Final = re.compile(r"/api/((jobs|batch)/[^/]+/)?token")  # a POST that needs only the right to read
COUNTED_REFUSALS: Final = frozenset({401, 403, 408, 413, 415, 429, 503, 507})


class ResponseSender:
    """Send a response with additional `headers`, and count it if its status is in `refusals`."""

    def __init__(self, send: ASGISendCallable, refusals: Counter[str]) -> None:
        self._send = send
        self._refusals = refusals
        self.headers: Headers = ()
        self.started = False

    async def __call__(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if message["status"] in COUNTED_REFUSALS:
                self._refusals[str(message["status"])] += 1
            message = {**message, "headers": [*message["headers"], *self.headers]}
        await self._send(message)


class AccessMiddleware:
    """An ASGI application that wraps another. It passes on only permitted requests, each with its RequestContext."""

    def __init__(self, app: ASGIFramework, context: AppContext) -> None:
        self._app = app
        self._context = context
        self._state = context.state
        self._authenticator = context.authenticator
        self._rate_limits = context.rate_limits
        self.transfers = Transfers()

    async def __call__(self, scope: AnyScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusals = Counter[str]() if scope["path"].startswith(HEALTH) else self._context.collector.refusals
        response = ResponseSender(send, refusals)
        try:
            client = self._admit(scope, response)
            with trio.CancelScope() as serving, self._authenticator.revocable(client.identity, serving.cancel):
                await self._pass_on(scope, client, receive, response)
            if serving.cancelled_caught:
                self.authorize(scope, self.identify(scope))
                raise Unauthorized("the key has changed: send the request again")
        except ProgressdError as error:
            if not response.started:
                await _refuse(error, receive, response)

    def identify(self, scope: HTTPScope) -> Client:
        """Return the client. Raises Unauthorized for an invalid key or token, except on public paths."""
        headers = list(scope["headers"])
        query = scope["query_string"].decode("latin-1") if scope["method"] in SAFE else None
        if ping := PING_KEY.match(scope["path"]):
            headers, query = [(b"x-api-key", ping[1].encode())], None
        try:
            identity = self._authenticator.authenticate(headers, query)
        except Unauthorized:
            if action_of(scope["method"], scope["path"]) is not None or scope["path"] == AUTH_STATUS:
                raise
            identity = self._authenticator.anonymous
        return Client(self._address(scope), identity)

    def count(self, path: str, client: Client) -> Headers:
        """Count a request. Returns the headers with the client's quota. Raises RateLimited."""
        if not path.startswith(("/api/", PINGS)) or path.startswith(HEALTH):
            return ()
        state = self._rate_limits.take(client)
        return () if state is None else _rate_limit_headers(state)

    def authorize(self, scope: HTTPScope, client: Client) -> None:
        """Check that the client may send this request. Raises Forbidden, Unauthorized, OutOfScope."""
        self._check_browser(scope)
        action = action_of(scope["method"], scope["path"])
        if action is not None:
            require(client.identity, action)
            _require_in_scope(client.identity, scope["path"])

    def _admit(self, scope: HTTPScope, response: ResponseSender) -> Client:
        try:
            client = self.identify(scope)
        except Unauthorized:  # guesses of a key count too
            self._count(scope, Client(self._address(scope), ANONYMOUS), response)
            self._check_browser(scope)
            raise
        self._count(scope, client, response)
        self.authorize(scope, client)
        return client

    def _count(self, scope: HTTPScope, client: Client, response: ResponseSender) -> None:
        try:
            response.headers = self.count(scope["path"], client)
        except RateLimited:
            response.headers = _rate_limit_headers(self._rate_limits.state(client))
            raise

    def _address(self, scope: HTTPScope) -> str:
        peer = scope["client"][0] if scope["client"] else "unix"
        return client_address(peer, scope["headers"], networks(self._state.settings.server.trusted_proxies))

    def _check_browser(self, scope: HTTPScope) -> None:
        """Check Host and Origin: browsers let any page send a form, or JSON as text, to any host."""
        server = self._state.settings.server
        host = header(scope["headers"], b"host")
        check_host(host, server)
        ping = scope["path"].startswith(PINGS)
        if scope["method"] not in SAFE or scope["path"].endswith("/events") or ping:
            check_origin(header(scope["headers"], b"origin"), host, server)
        if ping and header(scope["headers"], b"sec-fetch-site") in ("cross-site", "same-site"):
            raise Forbidden("pages of other sites may not send pings")  # such as by an image, which has no Origin

    async def _pass_on(
        self, scope: HTTPScope, client: Client, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Pass the request to the application. Raises TooManyUploads, RequestTimeout."""
        context = RequestContext(self._context, client, self._context.scopes.of(client.identity))
        cast("dict[str, Any]", scope)[CONTEXT] = context
        if scope["method"] == "POST" and scope["path"] in UPLOADS:
            owner = client.identity.key or counted_as(client.address)
            exempt = self._rate_limits.exempts(client.address)
            with self.transfers.uploading(owner, receive, self._state.settings.limits, exempt=exempt) as upload:
                await self._app(scope, upload.receive, send)
        elif DOWNLOAD.fullmatch(scope["path"]):
            with self.transfers.active():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _rate_limit_headers(state: RateLimitState) -> Headers:
    reset = math.ceil(time.time() + state.reset_in)
    values = {"limit": state.per_minute, "remaining": state.remaining, "reset": reset}
    return [(f"x-ratelimit-{name}".encode(), str(value).encode()) for name, value in values.items()]


def _require_in_scope(identity: Identity, path: str) -> None:
    paths = FOR_ALL_JOBS_TOKENS if identity.topic == ALL_JOBS else FOR_TOPIC_TOKENS
    if identity.topic is not None and not path.startswith(paths):
        raise OutOfScope(f"this token is for {identity.topic} only")
    if identity.bound and not path.startswith(FOR_BOUND_KEYS):
        raise OutOfScope("this endpoint covers all jobs, but this key may see only some")


def action_of(method: str, path: str) -> Scope | None:
    """Return the scope that a request needs; None for a public request."""
    if method == "OPTIONS" or path in PUBLIC or path.startswith(PUBLIC_BELOW):
        return None
    reads = (method in SAFE and not path.startswith(PINGS)) or (method == "POST" and NEW_TOKEN.fullmatch(path))
    return Scope.READ if reads else Scope.WRITE


async def _refuse(error: ProgressdError, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    body = encode(error.body())
    fields = {**error.headers(), "Content-Type": "application/json", "Content-Length": str(len(body))}
    await respond(receive, send, error.status, fields, body)
