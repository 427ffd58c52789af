"""Who am I, to the daemon?"""

from quart import Blueprint, Response, request

from progressd.auth.identity import EVERYBODY, NOBODY
from progressd.rest.gate import who_asks
from progressd.rest.services import json_response

blueprint = Blueprint("auth", __name__, url_prefix="/api/auth")


@blueprint.get("/status")
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
