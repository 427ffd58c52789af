"""ASGI responses without a route."""

from collections.abc import Mapping

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from progressd.net.request import BasePath


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


def with_slash(app: ASGIFramework, base: BasePath) -> ASGIFramework:
    """Return an application that redirects `/progress` to `/progress/`: the page's links are relative."""
    if not base.text:
        return app

    async def redirecting(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" and scope["path"] == base.text:
            query = scope["query_string"].decode("latin-1")
            location = base.url("/") + (f"?{query}" if query else "")
            await respond(receive, send, 308, {"Location": location, "Content-Length": "0"})
        else:
            await app(scope, receive, send)

    return redirecting
