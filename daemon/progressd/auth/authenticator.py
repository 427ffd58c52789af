"""Authentication: find the identity of a client from the key or token in its request. Authorization: check its
permissions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

import structlog
import trio
from msgspec import Struct

from progressd.auth.api_keys import Key, Scope, hashed, read_keys
from progressd.auth.watch_tokens import new_token, read_token, secret_from
from progressd.config.settings import AuthSettings
from progressd.core.errors import OutOfScope, SettingsError, Unauthorized
from progressd.core.job import Visible
from progressd.core.messages import ALL_JOBS

SUBPROTOCOL: Final = "progressd.token."  # followed by the token: the one header that a page can send with a WebSocket
POLL_INTERVAL: Final = 1.0  # seconds between two checks of the key file

log = structlog.get_logger(__name__)


class Identity(Struct, frozen=True, kw_only=True):
    """An identity. With `labels`, it sees only jobs that have all of them. With `topic`, it sees only that topic."""

    name: str | None = None  # name of the key
    scopes: frozenset[Scope] = frozenset()
    labels: Mapping[str, str] = {}
    topic: str | None = None
    expires_at: datetime | None = None
    key: str = ""  # the key's hash
    token: str = ""  # the watch token's hash
    logs: bool = True  # whether the client may read the logs of its jobs

    @property
    def bound(self) -> bool:
        """Return whether some jobs may be hidden from this identity."""
        return self.bound_within_topics or not self.may_watch_all

    @property
    def bound_within_topics(self) -> bool:
        """Return whether a topic that this identity may watch can have jobs that are hidden from it."""
        return bool(self.labels)

    @property
    def may_watch_all(self) -> bool:
        """Return whether it may watch more than one topic."""
        return self.topic in (None, ALL_JOBS)

    def may_see(self, what: Visible) -> bool:
        """Return whether a job, or the job of a message, exists for this identity."""
        if not self.labels.items() <= what.labels.items():
            return False
        return self.topic is None or self.topic == ALL_JOBS or self.topic in what.topics


UNRESTRICTED: Final = Identity(scopes=frozenset(Scope))
"""A client without a key, where the daemon requires none."""

ANONYMOUS: Final = Identity()
"""A client without a key, where the daemon requires one."""


class Client(NamedTuple):
    """The sender of a request or receiver of a stream: its own address, even behind proxies, and its identity."""

    address: str
    identity: Identity
    publishes: bool = False


def require(identity: Identity, action: Scope) -> None:
    """Check that an identity may do `action`. Raises Unauthorized, OutOfScope."""
    if not identity.scopes:
        raise Unauthorized("a key is required: send it as Authorization: Bearer KEY, or as X-API-Key")
    if action not in identity.scopes and Scope.ADMIN not in identity.scopes:
        scopes = ", ".join(sorted(identity.scopes))
        raise OutOfScope(f"the scope {action} is required: this key has {scopes}")


def admit(
    address: str, authenticate: Callable[[], Identity], count: Callable[[Client], object], check: Callable[[], None]
) -> Client:
    """Return the sender of a request or handshake. A request with a wrong key counts for the rate limit of the address.

    `check` checks what a browser says about the page. Raises the errors of all three functions.
    """
    try:
        client = Client(address, authenticate())
    except Unauthorized:
        count(Client(address, ANONYMOUS))
        check()
        raise
    count(client)
    check()
    return client


class Authenticator:
    """The keys in force. Call `load` first. `run` then watches the key file for changes."""

    def __init__(self, settings: AuthSettings) -> None:
        self.required = settings.required
        self._settings = settings
        self._path = settings.keys_file
        self._secret_path = settings.token_secret_file
        self._secret = ""
        self._version: tuple[int, int, int] | None = None
        self._keys: Mapping[str, Identity] = {}  # identities by key hash
        self._open: dict[object, tuple[Identity, Callable[[], object]]] = {}

    def load(self) -> None:
        """Read the keys and the token secret. Raises SettingsError, without any change."""
        self.apply_settings(self._settings)()

    def apply_settings(self, settings: AuthSettings) -> Callable[[], None]:
        """Read keys and secret again. Returns the function that applies them. Raises SettingsError."""
        version = self._file_version()
        keys = {key.hash: _identity_of_key(key) for key in read_keys(self._path)}
        secret = secret_from(self._secret_path)
        return partial(self._apply, settings, version, keys, secret)

    def _apply(
        self, settings: AuthSettings, version: tuple[int, int, int] | None, keys: Mapping[str, Identity], secret: str
    ) -> None:
        before, self._keys = self._keys, keys
        new_secret, self._secret = secret != self._secret, secret
        self._settings = settings
        self._version = version
        for identity, end in tuple(self._open.values()):
            revoked = identity.key and before.get(identity.key) != self._keys.get(identity.key)
            if revoked or (new_secret and identity.topic is not None):
                end()

    async def run(self) -> None:
        """Watch the key file for changes until cancelled. An unreadable file changes nothing."""
        while True:
            await trio.sleep(POLL_INTERVAL)
            self._end_expired()
            if self._file_version() != self._version:
                try:
                    self.load()
                    log.info("keys read", keys=len(self._keys))
                except SettingsError as error:
                    self._version = self._file_version()  # log the error once
                    log.error("keys not read, the previous keys stay in force", error=str(error))

    @property
    def anonymous(self) -> Identity:
        """Return the identity of a client without a key or token."""
        return ANONYMOUS if self.required else UNRESTRICTED

    def authenticate(self, headers: Sequence[tuple[bytes, bytes]], query: str | None) -> Identity:
        """Return the sender's identity.

        If no keys exist and none is required, a key is ignored: the client has the same permissions without it.

        Args:
            headers: with names in lower case.
            query: None if tokens in the query are not accepted.

        Raises:
            Unauthorized: for an unknown, revoked or expired key, and for an invalid token.
            TokenExpired: for a token that was valid once.
        """
        secret = _key_in(headers)
        if secret is None and query is not None and (token := _token_in(headers, query)) is not None:
            return self._identity_of(token)
        if secret is None or not (self._keys or self.required):
            return self.anonymous
        found = self._keys.get(hashed(secret))
        if found is None:
            raise Unauthorized("the key is unknown or has been revoked")
        if found.expires_at is not None and found.expires_at <= datetime.now(UTC):
            raise Unauthorized(f"the key {found.name} has expired")
        return found

    def new_token(
        self, identity: Identity, topic: str, lifetime: float | None = None, *, logs: bool = False
    ) -> tuple[str, datetime]:
        """Create a token for a topic that the identity may see. Returns it with its expiry. Raises OutOfScope.

        `lifetime`: seconds, `auth.max_token_lifetime` at most. `logs`: allow reading logs.
        """
        if identity.topic is not None:
            raise OutOfScope("a watch token cannot create another token")
        usual, longest = self._settings.token_lifetime, self._settings.max_token_lifetime
        seconds = usual if lifetime is None else min(lifetime, max(usual, longest))
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
        if identity.expires_at is not None:
            end = min(end, identity.expires_at)
        return new_token(self._secret, topic, end, identity.name or "", identity.key, logs=logs), end

    def _identity_of(self, token: str) -> Identity:
        """Return a token's identity. Its permissions and expiry do not exceed those of the key that made it."""
        claims = read_token(self._secret, token)
        maker = self._keys.get(claims.key)
        if claims.key and maker is None:
            raise Unauthorized("the key that created this token has been revoked")
        return Identity(
            name=claims.name or "token",
            scopes=frozenset([Scope.READ]),
            labels=maker.labels if maker else {},
            topic=claims.topic,
            expires_at=claims.expires_at,
            key=claims.key,
            token=hashed(token),
            logs=claims.logs,
        )

    def revocable(self, identity: Identity, end: Callable[[], object]) -> AbstractContextManager[None]:
        """Inside the block, call `end` when the identity's key or token expires, is revoked or changes; possibly twice.

        Call `end` at once if that has happened since the authentication.
        """
        return self._revocable(identity, end) if identity.key or identity.expires_at is not None else nullcontext()

    @contextmanager
    def _revocable(self, identity: Identity, end: Callable[[], object]) -> Iterator[None]:
        if identity.key and ((now := self._keys.get(identity.key)) is None or now.labels != identity.labels):
            end()
        entry = object()
        self._open[entry] = identity, end
        try:
            yield
        finally:
            del self._open[entry]

    def _end_expired(self) -> None:
        now = datetime.now(UTC)
        for identity, end in tuple(self._open.values()):
            if identity.expires_at is not None and identity.expires_at <= now:
                end()

    def _file_version(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _identity_of_key(key: Key) -> Identity:
    return Identity(
        name=key.name, scopes=frozenset(key.scopes), labels=key.labels, expires_at=key.expires_at, key=key.hash
    )


def _key_in(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Return the key in a request. Other schemes of Authorization are for a proxy in front of the daemon."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin-1").strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].decode("latin-1").strip()
    return None


def _token_in(headers: Sequence[tuple[bytes, bytes]], query: str) -> str | None:
    for name, value in headers:
        if name == b"sec-websocket-protocol":
            for offered in value.decode("latin-1").split(","):
                if offered.strip().startswith(SUBPROTOCOL):
                    return offered.strip().removeprefix(SUBPROTOCOL)
    if "token=" in query:
        return dict(parse_qsl(query, keep_blank_values=True)).get("token")
    return None
