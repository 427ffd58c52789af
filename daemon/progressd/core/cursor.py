"""The cursor: an opaque position in one store's stream of messages, from which a client can resume."""

import re
from typing import NamedTuple

from progressd.core.errors import InvalidInput

_CURSOR = re.compile(r"([0-9a-z]{1,32})-([0-9]{1,18})", re.ASCII)


class Cursor(NamedTuple):
    """An offset, and the store that gave it out: an offset means nothing to another store."""

    store: str
    offset: int

    def __str__(self) -> str:
        return f"{self.store}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str(cursor)` wrote. Raises InvalidInput for anything else."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise InvalidInput(f"{text[:60]!r} is not a cursor of this daemon")
        return cls(found[1], int(found[2]))
