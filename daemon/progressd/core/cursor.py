"""The cursor: an opaque position in the stream of messages of one store, from which a client can resume."""

import re
from typing import NamedTuple

from progressd.core.errors import InvalidInput

_CURSOR = re.compile(r"([0-9a-z]{1,32})-([0-9]{1,18})", re.ASCII)


class Cursor(NamedTuple):
    """An offset and the id of its store. An offset is valid only in its own store."""

    store: str
    offset: int

    def __str__(self) -> str:
        return f"{self.store}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Parse the result of `str(cursor)`. Raises InvalidInput."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise InvalidInput(f"{text[:60]!r} is not a cursor of this daemon")
        return cls(found[1], int(found[2]))
