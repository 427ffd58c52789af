"""The target of a request as one path, so that whoever decides and whoever answers see the same (RFC 9112 §3.2)."""

import re
from typing import Final
from urllib.parse import unquote

import h11

from progressd.net.base_path import BasePath

_ABSOLUTE: Final = re.compile(
    rb"https?://((?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]*)?)((?:[/?].*)?)",  # authority, path and query
    re.IGNORECASE,
)


def with_path(request: h11.Request, base: BasePath) -> h11.Request | None:
    """The request with a path that begins with one slash, without the prefix `base`; None: it has none such.

    Of a target in absolute form the authority becomes the header Host, instead of the one that came.
    """
    target, fields = request.target, None
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, target = absolute.groups()
        target = target if target.startswith(b"/") else b"/" + target
        fields = [(b"host", authority), *(field for field in request.headers if field[0] != b"host")]
    elif target == b"*" and request.method == b"OPTIONS":
        target = b"/"
    target = base.inside(target)
    path = unquote(target.partition(b"?")[0].decode("ascii"))
    if b"#" in target or not path.startswith("/") or path.startswith("//"):
        return None
    if target is request.target:
        return request
    headers = request.headers if fields is None else fields
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)
