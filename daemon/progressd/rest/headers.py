"""The headers that every answer over HTTP has, and those of a request."""

from collections.abc import Iterable, Mapping
from typing import Final

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The value of a request header, "" where absent; `name` in lower case."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")
