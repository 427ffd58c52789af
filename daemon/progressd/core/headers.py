"""Headers of a request, as h11 gives them: pairs of a name in lower case and a value."""

from collections.abc import Iterable


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The value of the first with this name, which is in lower case; "" where absent."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")
