"""Idempotency keys: a second request with the same `Idempotency-Key` finds what the first one created.

The id of the job follows from the key, so the store itself remembers it, across restarts and for as long as it keeps
the job. See the IETF's draft-ietf-httpapi-idempotency-key-header.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from progressd.core.errors import Conflict, InvalidInput

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = {"Idempotency-Replayed": "true"}

_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)  # with or without the quotes that the draft asks for


class IdempotencyKeys:
    """The idempotency keys of the requests that are being served."""

    def __init__(self, store_id: str) -> None:
        self._namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"progressd:{store_id}")
        self._claimed: set[str] = set()

    @contextmanager
    def claimed(self, key: str | None, kind: str, access_key: str) -> Iterator[str]:
        """Yield the id of what a request creates, a random one without an idempotency key.

        Args:
            key: the header.
            kind: what is created, "job" or "batch".
            access_key: the hash of the client's access key, if any. Each access key has idempotency keys of its own.

        Raises:
            InvalidInput: for a malformed key.
            Conflict: while another request with this key is being served.
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
