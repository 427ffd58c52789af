"""Access control: identify the client of each HTTP request, count the request, and pass on only permitted requests.

Pages of the sites in `server.allowed_origins` may read responses and send preflights (CORS, Fetch §3.2). Pages of all
sites may read the static files.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from hypercorn.typing import Scope as ASGIScope

from progressd.auth.api_keys import Scope
from progressd.auth.authenticator import Client, Identity, admit, require
from progressd.auth.limits import RateLimitState, client_address
from progressd.core.errors import Forbidden, OutOfScope, ProgressdError, RateLimited, Unauthorized
from progressd.core.messages import ALL_JOBS, encode
from progressd.engine.view import ClientView
from progressd.http.body import SAFE
from progressd.http.context import CONTEXT, AppContext, RequestContext
from progressd.http.job_cache import MIN_GZIP_BYTES, CachedResponse, Headers
from progressd.http.pages import HTML, PAGE, VARY, error_page, prefers_page
from progressd.http.schemas import JSON
from progressd.net.request import check_host, check_origin, header

AUTH_STATUS: Final = "/api/auth/status"  # public, but describes the request's key
PUBLIC: Final = frozenset(  # in addition to the pages
    {
        "/favicon.ico",
        AUTH_STATUS,
        "/api/docs",
        "/api/health",
        "/api/openapi.json",
        "/api/rate-limit/status",
    }
)
HEALTH: Final = "/api/health"  # not counted: probes request it constantly, and expect its 503
STATIC: Final = "/static/"
BADGES: Final = "/badge/"
PUBLIC_BELOW: Final = (STATIC, "/api/health/", "/embed/")
PINGS: Final = "/ping/"
UPLOADS: Final = "/api/uploads/"
PING_KEY: Final = re.compile(r"/ping/([^/]+)/")
FOR_BOUND_KEYS: Final = (
    PINGS,
    BADGES,
    "/api/jobs",
    "/api/batch",
    "/api/events",
    "/api/convert",
    "/api/uploads",
    "/api/pipelines",
    "/api/stats",
    "/api/token",
    "/ws",
)
FOR_TOPIC_TOKENS: Final = ("/api/jobs/", "/api/batch/", "/ws", BADGES)
FOR_ALL_JOBS_TOKENS: Final = (*FOR_TOPIC_TOKENS, "/api/jobs", "/api/events")
DOWNLOAD: Final = re.compile(r"/api/(jobs|batch)/[^/]+/download")
NEW_TOKEN: Final = re.compile(r"/api/((jobs|batch)/[^/]+/)?token")  # a POST that needs only the right to read
COUNTED_REJECTIONS: Final = frozenset({401, 403, 408, 413, 415, 429, 503, 507})

JOB: Final = re.compile(rb"/api/jobs/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
FOR_APPLICATION: Final = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"origin"})

EXPOSED_HEADERS: Final = (
    "ETag, Retry-After, Location, Content-Disposition, Idempotency-Replayed, "
    "Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm, "
    "Upload-Offset, Upload-Length, Upload-Metadata, Upload-Expires, Progressd-Job-Id, Progressd-Batch-Id, "
    "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
)
OPEN: Final = (  # pages of all sites may import the modules, which are the same for everybody
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": (
        "Content-Type, Authorization, X-API-Key, Idempotency-Key, If-None-Match, Last-Event-ID, Tus-Resumable, "
        "Upload-Length, Upload-Offset, Upload-Metadata, Upload-Checksum, X-HTTP-Method-Override, X-Request-ID"
    ),
    "Access-Control-Max-Age": "86400",  # seconds
}


class ResponseSender:
    """Send a response with the CORS headers and the client's `quota` headers, and count it if it is a rejection."""

    def __init__(self, send: ASGISendCallable, cors: Headers, rejected: Counter[str]) -> None:
        self._send = send
        self._cors = cors
        self._rejected = rejected
        self.quota: Headers = ()
        self.started = False

    async def __call__(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if message["status"] in COUNTED_REJECTIONS:
                self._rejected[str(message["status"])] += 1
            message = {**message, "headers": [*message["headers"], *self.quota, *self._cors]}
        await self._send(message)


class AccessMiddleware:
    """An ASGI application that wraps another. It passes on only permitted requests, each with its RequestContext."""

    def __init__(self, app: ASGIFramework, context: AppContext) -> None:
        self._app = app
        self._context = context
        self._authenticator = context.authenticator
        self._rate_limits = context.rate_limits
        self._registry = context.engine.registry

    async def __call__(self, scope: ASGIScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        rejected = Counter[str]() if scope["path"].startswith(HEALTH) else self._context.metrics.rejected
        origin = header(scope["headers"], b"origin")
        allowed = origin in self._context.settings.server.allowed_origins
        cors = OPEN if scope["path"].startswith(STATIC) else self._cors(origin if allowed else None)
        response = ResponseSender(send, cors, rejected)
        if await self._redirect(scope, receive, send):
            return
        if allowed and scope["method"] == "OPTIONS" and header(scope["headers"], b"access-control-request-method"):
            await respond(receive, response, 204, PREFLIGHT)  # a preflight has no credentials
            return
        try:
            client = self._admit(scope, response)
            with trio.CancelScope() as serving, self._authenticator.revocable(client.identity, serving.cancel):
                await self._pass_on(scope, client, receive, response)
            if serving.cancelled_caught:
                _authorize(self._identify(scope), scope)
                raise Unauthorized("the key has changed: send the request again")
        except ProgressdError as error:
            if not response.started:
                await _reject(error, scope, receive, response)

    def fast_read(
        self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], client: tuple[str, int] | None
    ) -> CachedResponse | None:
        """Respond to a read of a job, the most frequent request of polling clients: Quart alone takes 0.45 ms.

        The checks and the response are those of the application. Return None, and count nothing, if the application
        must respond. Header names are in lower case.
        """
        if method != b"GET" or (found := JOB.fullmatch(target)) is None:
            return None
        job = self._registry.known(found[1].decode())
        fields = dict(headers)
        if job is None or not FOR_APPLICATION.isdisjoint(fields):
            return None
        path = target.decode()
        scope: Any = {"method": "GET", "path": path, "query_string": b"", "headers": headers, "client": client}
        try:
            sender = Client(self._address(scope), self._identify(scope))
            self._check_browser(scope)
            _authorize(sender.identity, scope)
            if not sender.identity.may_see(job):
                return None
            answer = self._context.answers.answer(
                self._context.engine.attention.shown(job),
                fields.get(b"if-none-match"),
                self._context.queue_estimates.place(job),
            )
            if len(answer.body) >= MIN_GZIP_BYTES and b"accept-encoding" in fields:  # the application compresses it
                return None
            return answer.with_headers([*self._count(path, sender), *self._cors(None)])
        except ProgressdError:
            return None

    def _cors(self, origin: str | None) -> Headers:
        """Return the CORS headers for an allowed origin. `Vary` is necessary even if the request has no Origin."""
        if not self._context.settings.server.allowed_origins:
            return ()
        vary = (b"vary", b"Origin")
        if origin is None:
            return (vary,)
        allowed = (b"access-control-allow-origin", origin.encode("latin-1"))
        return vary, allowed, (b"access-control-expose-headers", EXPOSED_HEADERS.encode())

    async def _redirect(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> bool:
        """Redirect `/progress` to `/progress/`, because the page's links are relative. Return whether this applied."""
        base = self._context.base
        if not base.text or scope["path"] != base.text:
            return False
        query = scope["query_string"].decode("latin-1")
        location = base.url("/") + (f"?{query}" if query else "")
        await respond(receive, send, 308, {"Location": location, "Content-Length": "0"})
        return True

    def _identify(self, scope: HTTPScope) -> Identity:
        """Return the client's identity. Raises Unauthorized for an invalid key or token, except on public paths."""
        headers = list(scope["headers"])
        query = scope["query_string"].decode("latin-1") if scope["method"] in SAFE else None
        if ping := PING_KEY.match(scope["path"]):
            headers, query = [(b"x-api-key", ping[1].encode())], None
        try:
            return self._authenticator.authenticate(headers, query)
        except Unauthorized:
            if action_of(scope["method"], scope["path"]) is not None or scope["path"] == AUTH_STATUS:
                raise
            return self._authenticator.anonymous

    def _count(self, path: str, client: Client) -> Headers:
        """Count a request. Returns the headers with the client's quota. Raises RateLimited."""
        if not path.startswith(("/api/", PINGS, BADGES)) or path.startswith(HEALTH):
            return ()
        state = self._rate_limits.take(client)
        return () if state is None else _quota(state)

    def _admit(self, scope: HTTPScope, response: ResponseSender) -> Client:
        def count(client: Client) -> None:
            try:
                response.quota = self._count(scope["path"], client)
            except RateLimited:
                response.quota = _quota(self._rate_limits.state(client))
                raise

        identify, check = partial(self._identify, scope), partial(self._check_browser, scope)
        client = admit(self._address(scope), identify, count, check)
        _authorize(client.identity, scope)
        return client

    def _address(self, scope: HTTPScope) -> str:
        peer = scope["client"][0] if scope["client"] else "unix"
        return client_address(peer, scope["headers"], self._context.settings.server.trusted_proxies)

    def _check_browser(self, scope: HTTPScope) -> None:
        """Check Host and Origin: browsers let any page send a form, or JSON as text, to any host."""
        server = self._context.settings.server
        host = header(scope["headers"], b"host")
        check_host(host, server)
        ping = scope["path"].startswith(PINGS)
        if scope["method"] not in SAFE or scope["path"].endswith("/events") or ping:
            check_origin(header(scope["headers"], b"origin"), host, server)
        if ping and header(scope["headers"], b"sec-fetch-site") in ("cross-site", "same-site"):
            raise Forbidden("pages of other sites may not send pings")  # for example by an image, which sends no Origin

    async def _pass_on(
        self, scope: HTTPScope, client: Client, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        context = RequestContext(self._context, client, ClientView(self._context.engine, client.identity))
        cast("dict[str, Any]", scope)[CONTEXT] = context
        if DOWNLOAD.fullmatch(scope["path"]):
            with self._context.transfers.active():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _quota(state: RateLimitState) -> Headers:
    reset = math.ceil(time.time() + state.reset_in)
    values = {"limit": state.per_minute, "remaining": state.remaining, "reset": reset}
    return [(f"x-ratelimit-{name}".encode(), str(value).encode()) for name, value in values.items()]


def _authorize(identity: Identity, scope: HTTPScope) -> None:
    """Check that a client may send this request. Raises Unauthorized, OutOfScope."""
    path = scope["path"]
    action = action_of(scope["method"], path)
    if action is None:
        return
    require(identity, action)
    paths = FOR_ALL_JOBS_TOKENS if identity.topic == ALL_JOBS else FOR_TOPIC_TOKENS
    if identity.topic is not None and not path.startswith(paths):
        raise OutOfScope(f"this token is for {identity.topic} only")
    if identity.bound and not path.startswith(FOR_BOUND_KEYS):
        raise OutOfScope("this endpoint covers all jobs, but this key may see only some")


def action_of(method: str, path: str) -> Scope | None:
    """Return the scope that a request needs; None for a public request."""
    if method == "OPTIONS" or path in PUBLIC or path.startswith(PUBLIC_BELOW) or PAGE.fullmatch(path):
        return None
    reads = (method in SAFE and not path.startswith((PINGS, UPLOADS))) or (
        method == "POST" and NEW_TOKEN.fullmatch(path)
    )
    return Scope.READ if reads else Scope.WRITE


async def _reject(
    error: ProgressdError, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    fields = error.headers()
    if prefers_page(scope["method"], scope["path"], scope["headers"]):
        page = error_page(error.status, str(error), error.code, scope["path"], scope["headers"])
        body = b"" if scope["method"] == "HEAD" else page.encode()
        fields |= {"Content-Type": HTML, "Vary": VARY, "Cache-Control": "no-store"}
    else:
        body = encode(error.body())
        fields["Content-Type"] = JSON
    fields["Content-Length"] = str(len(body))
    await respond(receive, send, error.status, fields, body)


async def respond(
    receive: ASGIReceiveCallable, send: ASGISendCallable, status: int, fields: Mapping[str, str], body: bytes = b""
) -> None:
    """Send a whole response and discard the request's body: Hypercorn does not finish a request with an unread body."""
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_discard, receive)
        await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})
        nursery.cancel_scope.cancel()


async def _discard(receive: ASGIReceiveCallable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
