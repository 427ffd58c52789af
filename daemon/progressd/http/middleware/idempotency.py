"""Requests that may be sent twice: with an `Idempotency-Key`, the second finds what the first has made.

The id of what is made follows from the key, so the store itself remembers it, also across a restart and for as long as
the job is kept. See the IETF's draft-ietf-httpapi-idempotency-key-header.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Final

from progressd.core.errors import Conflict, InvalidInput

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = {"Idempotency-Replayed": "true"}

_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)  # with or without the quotes that the draft asks for


class IdempotencyKeys:
    """Which keys a request is working under just now."""

    def __init__(self, store_id: str) -> None:
        self._namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"progressd:{store_id}")
        self._claimed: set[str] = set()

    def of(self, key: str) -> "IdempotencyKeys":
        """Those of whoever has a key, by its hash: a new key of the same name shares none with the old one."""
        own = copy(self)
        own._namespace = uuid.uuid5(self._namespace, key)
        return own

    @contextmanager
    def claimed(self, key: str | None, what: str) -> Iterator[str]:
        """Within this, no other request makes `what` with this key; the id of it, a new one where there is no key.

        Raises InvalidInput for a malformed key, Conflict while another request is at it.
        """
        if key is None:
            yield str(uuid.uuid4())
            return
        if _KEY.fullmatch(key) is None:
            raise InvalidInput(f"{HEADER} is malformed: send 1 to 255 printable ASCII characters without spaces")
        made = str(uuid.uuid5(self._namespace, f"{what} {key}"))
        if made in self._claimed:
            raise Conflict(f"another request with this {HEADER} is under way: wait for its answer")
        self._claimed.add(made)
        try:
            yield made
        finally:
            self._claimed.discard(made)
