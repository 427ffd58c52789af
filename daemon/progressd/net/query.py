"""The query of a request: a parameter that the endpoint does not know is an error, and never ignored."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from progressd.core.errors import InvalidInput

EVERYWHERE: Final = frozenset({"token", "_"})  # a watch token; what dashboards add so that no cache answers


def require_known(given: Iterable[str], *structs: type[Struct]) -> None:
    """Check the names of the parameters given against the fields of these. Raises InvalidInput."""
    known = [name for struct in structs for name in struct.__struct_fields__]
    if unknown := set(given) - EVERYWHERE.union(known):
        there_are = f"known here: {', '.join(known)}" if known else "none is known here"
        raise InvalidInput(f"the query is wrong: unknown parameter {min(unknown)[:60]!r} ({there_are})")
