"""Admission: finds out who asks from what came with a request, by the keys in force."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import structlog
import trio

from progressd.auth.identity import EVERYBODY, NOBODY, Identity
from progressd.auth.keys import hashed, read_keys
from progressd.config.settings import AuthSettings
from progressd.core.errors import SettingsError, Unauthorized

LOOK_EVERY: Final = 1.0  # seconds after which the file of keys is looked at again

log = structlog.get_logger(__name__)


class Admission:
    """The keys in force. `load` comes first; `run` follows the file from then on."""

    def __init__(self, settings: AuthSettings) -> None:
        self.required = settings.required
        self._path = settings.keys_file
        self._version: tuple[int, int, int] | None = None
        self._keys: dict[str, Identity] = {}  # by hash
        self._held: dict[object, tuple[Identity, Callable[[], object]]] = {}

    def load(self) -> None:
        """Read the keys. Raises SettingsError, and then they are as they were."""
        version, before = self._look(), self._keys
        self._keys = {key.hash: key.identity for key in read_keys(self._path)}
        self._version = version
        for who, end in tuple(self._held.values()):
            if who.key and before.get(who.key) != self._keys.get(who.key):
                end()

    async def run(self) -> None:
        """Follow the file until cancelled. One that cannot be read changes nothing."""
        while True:
            await trio.sleep(LOOK_EVERY)
            self._end_expired()
            if self._look() != self._version:
                try:
                    self.load()
                    log.info("keys read", keys=len(self._keys))
                except SettingsError as error:
                    self._version = self._look()  # say it once
                    log.error("the keys stay as they were", error=str(error))

    def who(self, headers: Iterable[tuple[bytes, bytes]]) -> Identity:
        """Who sends these headers, whose names are in lower case. Raises Unauthorized for a key that is not good."""
        secret = _secret(headers)
        if secret is None:
            return NOBODY if self.required else EVERYBODY
        found = self._keys.get(hashed(secret))
        if found is None:
            raise Unauthorized("there is no such key, or it has been revoked")
        if found.expires_at is not None and found.expires_at <= datetime.now(UTC):
            raise Unauthorized(f"the key {found.name} has expired")
        return found

    @contextmanager
    def held(self, who: Identity, end: Callable[[], object]) -> Iterator[None]:
        """Within this, `end` is called when the key of `who` is revoked, changed, or expires; maybe more than once."""
        if not who.key:
            yield
            return
        token = object()
        self._held[token] = who, end
        try:
            yield
        finally:
            del self._held[token]

    def _end_expired(self) -> None:
        now = datetime.now(UTC)
        for who, end in tuple(self._held.values()):
            if who.expires_at is not None and who.expires_at <= now:
                end()

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _secret(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that came with a request; other schemes of Authorization are for a proxy before the daemon."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin-1").strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].decode("latin-1").strip()
    return None
