"""Normalize request targets (RFC 9112 §3.2) to a path, so that access checks and routes see the same path."""

import re
from typing import Final
from urllib.parse import unquote

import h11

from progressd.net.request import BasePath

_ABSOLUTE: Final = re.compile(
    rb"https?://((?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]*)?)((?:[/?].*)?)",  # authority, path and query
    re.IGNORECASE,
)


def with_path(request: h11.Request, base: BasePath) -> h11.Request | None:
    """Return the request with a path that starts with one slash, without the prefix `base`; None without such a path.

    The authority of a target in absolute form replaces the Host header.
    """
    target, fields = request.target, None
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, target = absolute.groups()
        target = target if target.startswith(b"/") else b"/" + target
        fields = [(b"host", authority), *(field for field in request.headers if field[0] != b"host")]
    elif target == b"*" and request.method == b"OPTIONS":
        target = b"/"
    target = base.strip(target)
    path = unquote(target.partition(b"?")[0].decode("ascii"))
    if b"#" in target or not path.startswith("/") or path.startswith("//"):
        return None
    if target is request.target:
        return request
    headers = request.headers if fields is None else fields
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)
