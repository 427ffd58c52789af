"""Who am I, to the daemon? And tokens for those who look on from a browser."""

import math
import time
from datetime import UTC, datetime

from quart import Blueprint, Response, request

from progressd.auth.identity import EVERYBODY, NOBODY
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.messages import ALL_JOBS, batch_topic, job_topic
from progressd.http.context import json_response, services
from progressd.http.middleware.access import who_asks
from progressd.http.openapi.operations import described
from progressd.http.schemas.responses import AuthStatus, RateLimitStatus, WatchToken

blueprint = Blueprint("auth", __name__)


@blueprint.get("/api/auth/status")
@described(AuthStatus)
async def status() -> Response:
    """The name and rights of the key that came with the request; with a bad one it does not get here."""
    who = who_asks(request.scope)
    if who in (EVERYBODY, NOBODY):
        required = who is NOBODY
        message = "this daemon asks for a key" if required else "no key is needed here"
        return json_response({"authenticated": False, "auth_required": required, "message": message})
    body: dict[str, object] = {"authenticated": True, "key_name": who.name, "scopes": sorted(who.scopes)}
    if who.labels:
        body["labels"] = who.labels
    return json_response({**body, "expires_at": who.expires_at})


@blueprint.get("/api/rate-limit/status")
@described(RateLimitStatus)
async def rate_limit() -> Response:
    """How often whoever asks may still do so."""
    access = services().access
    limited, left = access.limits(request.scope), access.standing(request.scope)
    full_at = datetime.fromtimestamp(math.ceil(time.time() + left.reset_in), UTC)
    return json_response(RateLimitStatus(limited, left.per_minute, left.burst, left.remaining, full_at))


@blueprint.post("/api/token")
@described(WatchToken)
async def token() -> Response:
    """A token to watch all jobs, as far as whoever asks may."""
    return await _token_for(ALL_JOBS)


@blueprint.post("/api/jobs/<job_id>/token")
@described(WatchToken)
async def job_token(job_id: str) -> Response:
    """A token to watch one job, and fetch what comes of it."""
    return await _token_for(job_topic(checked_job_id(job_id)))


@blueprint.post("/api/batch/<batch_id>/token")
@described(WatchToken)
async def batch_token(batch_id: str) -> Response:
    """A token to watch one batch and its jobs."""
    return await _token_for(batch_topic(checked_batch_id(batch_id)))


async def _token_for(topic: str) -> Response:
    daemon = services()
    await daemon.history.require(topic)
    made, end = daemon.authenticator.new_token(who_asks(request.scope), topic)
    return json_response({"token": made, "topic": topic, "expires_at": end}, 200, {"Cache-Control": "no-store"})
