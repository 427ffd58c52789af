"""The permissions and quota of the client, and watch tokens for browsers."""

import math
import time
from datetime import UTC, datetime
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from quart import Blueprint, Response, request

from progressd.auth.authenticator import ANONYMOUS, UNRESTRICTED
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.messages import ALL_JOBS, batch_topic, job_topic
from progressd.http.context import json_response, request_context
from progressd.http.openapi import described
from progressd.net.request import parsed_query

blueprint = Blueprint("auth", __name__)


class RateLimitStatus(Struct, frozen=True):
    """The request quota. The full burst is available again at `reset_at`."""

    enabled: bool
    requests_per_minute: int
    burst_size: int
    your_remaining: int
    reset_at: datetime


class AuthStatus(Struct, frozen=True):
    """The permissions of the request's key, or whether a key is required."""

    authenticated: bool
    auth_required: bool | UnsetType = UNSET
    message: str | UnsetType = UNSET
    key_name: str | UnsetType = UNSET
    scopes: list[str] | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    expires_at: datetime | UnsetType | None = UNSET


class WatchToken(Struct, frozen=True):
    """A token to watch one topic, for browsers: they cannot send a key with a WebSocket or an EventSource."""

    token: str
    topic: str
    expires_at: datetime


class TokenQuery(Struct, frozen=True):
    """The query of a new token: whether it shows logs too, and its lifetime in seconds."""

    log: bool = False
    lifetime: Annotated[float, Meta(gt=0, le=2**31)] | None = None


@blueprint.get("/api/auth/status")
@described(AuthStatus)
async def status() -> Response:
    """Return the name and permissions of the request's key. An invalid key returns 401."""
    identity = request_context().client.identity
    if identity in (UNRESTRICTED, ANONYMOUS):
        required = identity is ANONYMOUS
        message = "this daemon requires a key" if required else "this daemon requires no key"
        return json_response({"authenticated": False, "auth_required": required, "message": message})
    body: dict[str, object] = {"authenticated": True, "key_name": identity.name, "scopes": sorted(identity.scopes)}
    if identity.labels:
        body["labels"] = identity.labels
    return json_response({**body, "expires_at": identity.expires_at})


@blueprint.get("/api/rate-limit/status")
@described(RateLimitStatus)
async def rate_limit() -> Response:
    """Return the client's remaining request quota."""
    context = request_context()
    limited, state = (
        not context.app.rate_limits.exempts(context.client.address),
        context.app.rate_limits.state(context.client),
    )
    full_at = datetime.fromtimestamp(math.ceil(time.time() + state.reset_in), UTC)
    return json_response(RateLimitStatus(limited, state.per_minute, state.burst, state.remaining, full_at))


@blueprint.post("/api/token")
@described(WatchToken, query=(TokenQuery,))
async def token() -> Response:
    """Create a token to watch all jobs visible to the client."""
    return await _token_for(ALL_JOBS)


@blueprint.post("/api/jobs/<job_id>/token")
@described(WatchToken, query=(TokenQuery,))
async def job_token(job_id: str) -> Response:
    """Create a token to watch one job and download its result."""
    return await _token_for(job_topic(checked_job_id(job_id)))


@blueprint.post("/api/batch/<batch_id>/token")
@described(WatchToken, query=(TokenQuery,))
async def batch_token(batch_id: str) -> Response:
    """Create a token to watch one batch and its jobs."""
    return await _token_for(batch_topic(checked_batch_id(batch_id)))


async def _token_for(topic: str) -> Response:
    context = request_context()
    query = parsed_query(request.args, TokenQuery)
    await context.view.require(topic)
    identity = context.client.identity
    token, end = context.app.authenticator.new_token(identity, topic, query.lifetime, logs=query.log)
    return json_response({"token": token, "topic": topic, "expires_at": end}, 200, {"Cache-Control": "no-store"})
