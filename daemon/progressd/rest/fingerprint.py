"""What a request with files asks for, as one digest: whether its `Idempotency-Key` has come with the same before.

The body itself would not tell: each client draws a boundary for its parts, and their order means nothing.
"""

from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from progressd.rest.multipart import Inbox, Sink

_encode = msgspec.json.Encoder(order="sorted").encode


class Digested:
    """An inbox that digests the files, and hands them on to another, if there is one to keep them."""

    def __init__(self, pipeline: str, inbox: Inbox | None = None) -> None:
        self._inbox = inbox
        self._digest = blake2b(digest_size=16)
        self._add(pipeline.encode())
        self._file = _File(None)

    async def begin(self, filename: str) -> Sink:
        """See Inbox."""
        self._add(filename.encode(errors="surrogatepass"))
        self._file = _File(None if self._inbox is None else await self._inbox.begin(filename))
        return self._file

    async def whole(self) -> None:
        """See Inbox."""
        self._add(self._file.digest.digest())
        if self._inbox is not None:
            await self._inbox.whole()

    def fingerprint(self, options: Mapping[str, object], labels: Mapping[str, str]) -> str:
        """Of everything, with the options as they were given."""
        self._add(_encode(options))
        if labels:  # without any it is as it was when there were none to give
            self._add(_encode(labels))
        return self._digest.hexdigest()

    def _add(self, data: bytes) -> None:
        """With its length, so that nothing can move from one part to the next."""
        self._digest.update(len(data).to_bytes(8, "big"))
        self._digest.update(data)


class _File:
    def __init__(self, into: Sink | None) -> None:
        self._into = into
        self.digest = blake2b()  # 60 µs for a piece of 64 KiB
        self.size = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        self.digest.update(data)
        if self._into is not None:
            await self._into.write(data)
