"""Uploads and downloads under way: how many uploads there may be, which one gives way, and what a stop waits for."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent

from progressd.config.settings import Settings
from progressd.core.errors import RequestTimeout, TooManyUploads

STALLED: Final = 5.0  # seconds behind, after which an upload gives way to one without a place


class Uploading:
    """A request that brings files of `client`. Its `receive` measures how long the client is waited for."""

    def __init__(self, client: str, receive: ASGIReceiveCallable) -> None:
        self.client = client
        self.scope = trio.CancelScope()  # around it
        self._receive = receive
        self._size = 0  # bytes that have come
        self._waited = 0.0  # seconds, for these
        self._waiting_since = math.inf
        self._whole = False

    async def receive(self) -> ASGIReceiveEvent:
        """Receive the next piece of the body."""
        if self._whole:
            return await self._receive()
        self._waiting_since = trio.current_time()
        message = await self._receive()
        self._waited += trio.current_time() - self._waiting_since
        self._waiting_since = math.inf
        if message["type"] == "http.request":
            self._size += len(message["body"])
            self._whole = not message["more_body"]
        return message

    def behind(self, rate: int) -> float:
        """Return for how many seconds the client is silent, or how late it is at `rate` bytes a second."""
        silent = max(0.0, trio.current_time() - self._waiting_since)
        late = self._waited + silent - self._size / rate if rate and not self._whole else 0.0
        return max(silent, late)


class Transfers:
    """Counts what is under way."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._ends: set[trio.Event] = set()
        self._uploads: list[Uploading] = []

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._limits = settings.limits

    @property
    def ends(self) -> tuple[trio.Event, ...]:
        """The events that are set at the ends of what is under way now."""
        return tuple(self._ends)

    @property
    def uploads(self) -> Counter[str]:
        """The number of uploads of each client."""
        return Counter(upload.client for upload in self._uploads)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Within this, a file is sent or received."""
        ended = trio.Event()
        self._ends.add(ended)
        try:
            yield
        finally:
            self._ends.discard(ended)
            ended.set()

    @contextmanager
    def uploading(self, client: str, receive: ASGIReceiveCallable, *, unlimited: bool) -> Iterator[Uploading]:
        """Within this, a file comes in. Raises TooManyUploads, and RequestTimeout once it has given way to another.

        An `exempt_addresses` client leaves a quarter of the places to others all the same.
        """
        most = self._limits.max_uploads
        share = most - most // 4 if unlimited else self._limits.max_uploads_per_address
        own = [upload for upload in self._uploads if upload.client == client]
        if len(own) >= share:
            self._make_room(own, TooManyUploads(f"{share} uploads of yours are under way already"))
        if len(self._uploads) >= most:
            self._make_room(self._uploads, TooManyUploads(f"{most} uploads are under way already"))
        upload = Uploading(client, receive)
        self._uploads.append(upload)
        try:
            with self.under_way(), upload.scope:
                yield upload
        finally:
            self._remove(upload)
        if upload.scope.cancelled_caught:
            raise RequestTimeout("the body comes too slowly, and another upload needed the place")

    def _make_room(self, uploads: list[Uploading], error: TooManyUploads) -> None:
        """End the one that is furthest behind. Raises the error where none is."""
        rate = self._limits.min_body_rate
        slowest = max(uploads, key=lambda upload: upload.behind(rate))
        if slowest.behind(rate) < STALLED:
            raise error
        self._remove(slowest)
        slowest.scope.cancel()

    def _remove(self, upload: Uploading) -> None:
        if upload in self._uploads:
            self._uploads.remove(upload)
