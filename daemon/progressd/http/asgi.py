"""An answer that no handler gives: it goes out at once, and what the client still sends is let go of."""

from collections.abc import Mapping

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from progressd.net.base_path import BasePath


async def answer_at_once(
    receive: ASGIReceiveCallable, send: ASGISendCallable, status: int, fields: Mapping[str, str], body: bytes = b""
) -> None:
    """Send a whole answer. A body of the request that nobody read would keep Hypercorn from ending it."""
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
    """An application around another: sends `/progress` to `/progress/`, without which the page's links lead nowhere."""
    if not base.text:
        return app

    async def redirecting(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" and scope["path"] == base.text:
            query = scope["query_string"].decode("latin-1")
            there = base.url("/") + (f"?{query}" if query else "")
            await answer_at_once(receive, send, 308, {"Location": there, "Content-Length": "0"})
        else:
            await app(scope, receive, send)

    return redirecting
