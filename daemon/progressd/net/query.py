"""Query parameters: an unknown parameter is an error, and is never ignored."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from progressd.core.errors import InvalidInput

ALWAYS_ALLOWED: Final = frozenset({"token", "_"})  # a watch token; a parameter that dashboards add to bypass caches


def require_known(given: Iterable[str], *structs: type[Struct]) -> None:
    """Check the names of query parameters against the fields of the structs. Raises InvalidInput."""
    known = [name for struct in structs for name in struct.__struct_fields__]
    if unknown := set(given) - ALWAYS_ALLOWED.union(known):
        known_here = f"known here: {', '.join(known)}" if known else "none is known here"
        raise InvalidInput(f"the query is wrong: unknown parameter {min(unknown)[:60]!r} ({known_here})")
