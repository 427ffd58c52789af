"""Uploads and downloads in progress: limit them, cancel a stalled upload for a new one, and delay a shutdown."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent

from progressd.config.settings import Limits
from progressd.core.errors import RequestTimeout, TooManyUploads

STALL_TIMEOUT: Final = 5.0  # seconds of delay after which a new upload can replace an upload


class Uploading:
    """A request that uploads files. Its `receive` measures the time spent waiting for the client."""

    def __init__(self, client: str, receive: ASGIReceiveCallable) -> None:
        self.client = client
        self.scope = trio.CancelScope()
        self._receive = receive
        self._size = 0  # bytes received
        self._waited = 0.0  # seconds spent waiting for these bytes
        self._waiting_since = math.inf
        self._complete = False

    async def receive(self) -> ASGIReceiveEvent:
        """Receive the next chunk of the body."""
        if self._complete:
            return await self._receive()
        self._waiting_since = trio.current_time()
        message = await self._receive()
        self._waited += trio.current_time() - self._waiting_since
        self._waiting_since = math.inf
        if message["type"] == "http.request":
            self._size += len(message["body"])
            self._complete = not message["more_body"]
        return message

    def behind(self, rate: int) -> float:
        """Return for how many seconds the client has sent nothing, or its delay at `rate` bytes a second."""
        silent = max(0.0, trio.current_time() - self._waiting_since)
        late = self._waited + silent - self._size / rate if rate and not self._complete else 0.0
        return max(silent, late)


class Transfers:
    """The uploads and downloads in progress."""

    def __init__(self) -> None:
        self._ends: set[trio.Event] = set()
        self._uploads: list[Uploading] = []

    @property
    def ends(self) -> tuple[trio.Event, ...]:
        """Return an event for each transfer in progress, set when the transfer ends."""
        return tuple(self._ends)

    @property
    def uploads(self) -> Counter[str]:
        """Return the number of uploads of each client."""
        return Counter(upload.client for upload in self._uploads)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Register a transfer inside the block."""
        ended = trio.Event()
        self._ends.add(ended)
        try:
            yield
        finally:
            self._ends.discard(ended)
            ended.set()

    @contextmanager
    def uploading(
        self, client: str, receive: ASGIReceiveCallable, limits: Limits, *, exempt: bool
    ) -> Iterator[Uploading]:
        """Register an upload inside the block. Raises TooManyUploads, and RequestTimeout if a new upload replaced it.

        A client that is `exempt` from the limit per address leaves a quarter of the slots to other clients.
        """
        max_uploads = limits.max_uploads
        share = max_uploads - max_uploads // 4 if exempt else limits.max_uploads_per_address
        own = [upload for upload in self._uploads if upload.client == client]
        if len(own) >= share:
            self._make_room(own, limits, TooManyUploads(f"this client already has {share} uploads in progress"))
        if len(self._uploads) >= max_uploads:
            self._make_room(self._uploads, limits, TooManyUploads(f"{max_uploads} uploads are already in progress"))
        upload = Uploading(client, receive)
        self._uploads.append(upload)
        try:
            with self.active(), upload.scope:
                yield upload
        finally:
            self._remove(upload)
        if upload.scope.cancelled_caught:
            raise RequestTimeout("the body arrived too slowly and made room for another upload")

    def _make_room(self, uploads: list[Uploading], limits: Limits, error: TooManyUploads) -> None:
        """Cancel the upload that is furthest behind. Raises the error if no upload is."""
        slowest = max(uploads, key=lambda upload: upload.behind(limits.min_body_rate))
        if slowest.behind(limits.min_body_rate) < STALL_TIMEOUT:
            raise error
        self._remove(slowest)
        slowest.scope.cancel()

    def _remove(self, upload: Uploading) -> None:
        if upload in self._uploads:
            self._uploads.remove(upload)
