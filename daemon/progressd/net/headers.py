"""HTTP headers as h11 represents them: pairs of a lower-case name and a value."""

from collections.abc import Iterable
from typing import Final

# Sent with every response: browsers must not run or embed anything else.
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
    """Return the first value of a lower-case name, or ""."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")
