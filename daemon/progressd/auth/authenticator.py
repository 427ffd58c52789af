"""Admission: finds out who asks from what came with a request, by the keys in force."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Final
from urllib.parse import parse_qsl

import structlog
import trio

from progressd.auth.api_keys import hashed, read_keys
from progressd.auth.identity import EVERYBODY, NOBODY, Identity, Scope
from progressd.auth.watch_tokens import lifetime_of, new_token, read_token, secret_from
from progressd.config.settings import AuthSettings
from progressd.core.errors import OutOfScope, SettingsError, Unauthorized

SUBPROTOCOL: Final = "progressd.token."  # and the token: the one header that a page can send with a WebSocket
POLL_INTERVAL: Final = 1.0  # seconds after which the file of keys is looked at again

log = structlog.get_logger(__name__)


class Authenticator:
    """The keys in force. `load` comes first; `run` follows the file from then on."""

    def __init__(self, settings: AuthSettings) -> None:
        self.required = settings.required
        self._settings = settings
        self._path = settings.keys_file
        self._secret_path = settings.token_secret_file
        self._secret = ""
        self._version: tuple[int, int, int] | None = None
        self._keys: Mapping[str, Identity] = {}  # by hash
        self._held: dict[object, tuple[Identity, Callable[[], object]]] = {}

    def load(self) -> None:
        """Read the keys and the secret of tokens. Raises SettingsError, and then they are as they were."""
        self.use(self._settings)()

    def use(self, settings: AuthSettings) -> Callable[[], None]:
        """Read keys and secret again; what puts them into force, and the settings. Raises SettingsError."""
        version = self._look()
        keys = {key.hash: key.identity for key in read_keys(self._path)}
        secret = secret_from(self._secret_path)
        return partial(self._use, settings, version, keys, secret)

    def _use(
        self, settings: AuthSettings, version: tuple[int, int, int] | None, keys: Mapping[str, Identity], secret: str
    ) -> None:
        before, self._keys = self._keys, keys
        signed_otherwise, self._secret = secret != self._secret, secret
        self._settings = settings
        self._version = version
        for who, end in tuple(self._held.values()):
            revoked = who.key and before.get(who.key) != self._keys.get(who.key)
            if revoked or (signed_otherwise and who.topic is not None):
                end()

    async def run(self) -> None:
        """Follow the file until cancelled. One that cannot be read changes nothing."""
        while True:
            await trio.sleep(POLL_INTERVAL)
            self._end_expired()
            if self._look() != self._version:
                try:
                    self.load()
                    log.info("keys read", keys=len(self._keys))
                except SettingsError as error:
                    self._version = self._look()  # say it once
                    log.error("the keys stay as they were", error=str(error))

    @property
    def anybody(self) -> Identity:
        """Who comes without a key or token."""
        return NOBODY if self.required else EVERYBODY

    def who(self, headers: Sequence[tuple[bytes, bytes]], query: str | None) -> Identity:
        """Who sends these headers, whose names are in lower case, with this query; None: a token does not do.

        Where there are no keys and none is needed, that of something else is none: without it one may do as much.
        Raises Unauthorized for a key or token that is not good, TokenExpired.
        """
        secret = _secret(headers)
        if secret is None and query is not None and (token := _token(headers, query)) is not None:
            return self._holder(token)
        if secret is None or not (self._keys or self.required):
            return self.anybody
        found = self._keys.get(hashed(secret))
        if found is None:
            raise Unauthorized("there is no such key, or it has been revoked")
        if found.expires_at is not None and found.expires_at <= datetime.now(UTC):
            raise Unauthorized(f"the key {found.name} has expired")
        return found

    def new_token(self, who: Identity, topic: str) -> tuple[str, datetime]:
        """A token for a topic, which `who` has been found to see, and its end. Raises OutOfScope."""
        if who.topic is not None:
            raise OutOfScope("a token makes no other")
        end = lifetime_of(who, self._settings.token_lifetime)
        return new_token(self._secret, topic, end, who), end

    def _holder(self, token: str) -> Identity:
        """Who has a token: no more than who made it, and no longer."""
        grant = read_token(self._secret, token)
        maker = self._keys.get(grant.key)
        if grant.key and maker is None:
            raise Unauthorized("the key that this token was made with has been revoked")
        return Identity(
            name=grant.name or "token",
            scopes=frozenset([Scope.READ]),
            labels=maker.labels if maker else {},
            topic=grant.topic,
            expires_at=grant.expires_at,
            key=grant.key,
            token=hashed(token),
        )

    @contextmanager
    def held(self, who: Identity, end: Callable[[], object]) -> Iterator[None]:
        """Within this, `end` is called when the key or token of `who` ends, or its key changes; maybe twice.

        At once, where that has happened since `who` was found out.
        """
        if not who.key and who.expires_at is None:
            yield
            return
        if who.key and ((now := self._keys.get(who.key)) is None or now.labels != who.labels):
            end()
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


def _secret(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The key that came with a request; other schemes of Authorization are for a proxy before the daemon."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin-1").strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].decode("latin-1").strip()
    return None


def _token(headers: Sequence[tuple[bytes, bytes]], query: str) -> str | None:
    """The token that came with a request."""
    for name, value in headers:
        if name == b"sec-websocket-protocol":
            for offered in value.decode("latin-1").split(","):
                if offered.strip().startswith(SUBPROTOCOL):
                    return offered.strip().removeprefix(SUBPROTOCOL)
    if "token=" in query:
        return dict(parse_qsl(query, keep_blank_values=True)).get("token")
    return None
