"""Idempotency keys: a second request with the same `Idempotency-Key` finds what the first one created.

The job id is derived from the key, so the store remembers the key across restarts, for as long as it keeps the job. See
the IETF's draft-ietf-httpapi-idempotency-key-header.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from progressd.core.errors import Conflict, InvalidInput

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = {"Idempotency-Replayed": "true"}

_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)  # with or without the quotes that the draft requires


class IdempotencyKeys:
    """The idempotency keys of the requests in progress."""

    def __init__(self, store_id: str) -> None:
        self._namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"progressd:{store_id}")
        self._claimed: set[str] = set()

    @contextmanager
    def claimed(self, key: str | None, kind: str, access_key: str) -> Iterator[str]:
        """Yield the id of the job or batch that a request creates; it is random without an idempotency key.

        Args:
            key: the value of the header.
            kind: what is created, "job" or "batch".
            access_key: the hash of the client's access key, if any. Each access key has its own idempotency keys.

        Raises:
            InvalidInput: for a malformed key.
            Conflict: while another request with this key is in progress.
        """
        if key is None:
            yield str(uuid.uuid4())
            return
        if _KEY.fullmatch(key) is None:
            raise InvalidInput(f"{HEADER} is malformed: send 1 to 255 printable ASCII characters without spaces")
        namespace = uuid.uuid5(self._namespace, access_key) if access_key else self._namespace
        id_ = str(uuid.uuid5(namespace, f"{kind} {key}"))
        if id_ in self._claimed:
            raise Conflict(f"another request with this {HEADER} is being served: wait for its response")
        self._claimed.add(id_)
        try:
            yield id_
        finally:
            self._claimed.discard(id_)
