"""Headers of requests and answers, as h11 has them: pairs of a name in lower case and a value."""

from collections.abc import Iterable
from typing import Final

# What every answer over HTTP has, whoever gives it: it is to be nothing in a browser but what it says.
ALWAYS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The value of the first with this name, which is in lower case; "" where absent."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")
