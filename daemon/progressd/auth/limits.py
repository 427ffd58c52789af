"""Find a client's address, even behind proxies, and limit its request rate and its connections.

Proxies report the client's address in X-Forwarded-For, but any client can too. Each proxy appends the address of its
peer. So the list is read from the right, as long as a trusted proxy wrote the entry. The first address that is not a
trusted proxy's is the client's.
"""

import ipaddress
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import trio

from progressd.auth.authenticator import Client
from progressd.config.settings import Settings
from progressd.core.errors import RateLimited, TooManyConnections, TooManyOfAddress, TooManyOfKey

# Clients that are counted together: all clients, or those of one address, key or token.
Group: TypeAlias = tuple[str, str]

MAX_BUCKETS: Final = 10_000  # about 200 bytes each

_network = lru_cache(maxsize=64)(ipaddress.ip_network)
_PORT: Final = re.compile(r"(?:\[(.*)\]|([^:]*))(?::[0-9]+)?")


@lru_cache(maxsize=1024)
def within(address: str, networks: tuple[str, ...]) -> bool:
    """Return whether an address is in one of the networks, such as `127.0.0.0/8`. Text such as `unix` is in none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in map(_network, networks))


def address_group(address: str) -> str:
    """Return the address or network that limits count: for IPv6 the /64, because a client has at least that many."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def client_address(peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: tuple[str, ...]) -> str:
    """Return the client's address, from the peer's and from the X-Forwarded-For of trusted proxies."""
    if not trusted or not within(peer, trusted):
        return peer
    client = peer
    text = ",".join([value.decode("latin-1") for name, value in headers if name.lower() == b"x-forwarded-for"])
    for entry in map(_without_port, reversed(text.split(","))):
        if not within(client, trusted):
            break
        if not is_address(entry):
            return client  # hidden by a proxy, or invalid
        client = entry
    return client


def _without_port(text: str) -> str:
    text = text.strip()
    if is_address(text):
        return text
    found = _PORT.fullmatch(text)
    return (found[1] or found[2] or "") if found else ""


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class RateLimitState(NamedTuple):
    """A client's quota: the remaining whole requests, and the seconds until the full burst is available again."""

    per_minute: int
    burst: int
    remaining: int
    reset_in: float


class RateLimiter:
    """Count requests in token buckets: one for each key, and one for each address without a key.

    Watch tokens count for the address, not for the key that created them.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = trio.current_time) -> None:
        self._limits = settings.limits
        self._clock = clock
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests, and when; oldest first

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings."""
        self._limits = settings.limits

    def exempts(self, address: str) -> bool:
        """Return whether an address has no limit."""
        return within(address, self._limits.exempt_addresses)

    def take(self, client: Client) -> RateLimitState | None:
        """Count a request. Returns None for a client without a limit. Raises RateLimited."""
        if self.exempts(client.address):
            return None
        bucket, limits = _bucket(client), self._limits
        used = self._used_by(bucket) + 1
        if used > limits.rate_limit_burst + 1e-6:  # no rejection by rounding errors
            wait = math.ceil((used - limits.rate_limit_burst) * 60 / limits.rate_limit_per_minute)
            raise RateLimited(
                f"too many requests: at most {limits.rate_limit_per_minute} a minute,"
                f" {limits.rate_limit_burst} of them at once",
                wait,
            )
        self._used[bucket] = used, self._clock()
        self._used.move_to_end(bucket)
        if len(self._used) > MAX_BUCKETS:
            self._used.popitem(last=False)
        return self._state(used)

    def state(self, client: Client) -> RateLimitState:
        """Return a client's quota without counting a request."""
        return self._state(self._used_by(_bucket(client)))

    def _used_by(self, bucket: str) -> float:
        now = self._clock()
        used, since = self._used.get(bucket, (0.0, now))
        return max(0.0, used - (now - since) * self._limits.rate_limit_per_minute / 60)

    def _state(self, used: float) -> RateLimitState:
        per_minute, burst = self._limits.rate_limit_per_minute, self._limits.rate_limit_burst
        return RateLimitState(per_minute, burst, int(burst - used), used * 60 / per_minute)


def _bucket(client: Client) -> str:
    identity = client.identity
    return identity.key if identity.key and not identity.token else address_group(client.address)


class ConnectionLimiter:
    """Count connected clients, and separately producers on WebSockets; in total and per client.

    A watcher is a WebSocket, an event stream or a long poll."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._watching: Counter[Group] = Counter()
        self._publishing: Counter[Group] = Counter()

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings. Connected clients stay connected."""
        self._limits = settings.limits

    def check(self, client: Client) -> None:
        """Check the limits for another client. Raises TooManyConnections, TooManyOfAddress, TooManyOfKey."""
        limits, taken = self._limits, self._taken(client)
        if taken["all", ""] >= limits.max_connections:
            raise TooManyConnections(f"all {limits.max_connections} connections are in use")
        address, most = client.address, limits.max_connections_per_address
        if taken["address", address_group(address)] >= most and not within(address, limits.exempt_addresses):
            raise TooManyOfAddress(f"{address} already has {most} connections")
        for kind, name, most in (
            ("key", client.identity.key, limits.max_connections_per_key),
            ("token", client.identity.token, limits.max_connections_per_token),
        ):
            if name and taken[kind, name] >= most:
                raise TooManyOfKey(f"this {kind} already has {most} connections")

    def add(self, client: Client) -> None:
        """Add a client to the count."""
        taken = self._taken(client)
        for group in _groups(client):
            taken[group] += 1

    def remove(self, client: Client) -> None:
        """Remove a client from the count."""
        taken = self._taken(client)
        for group in _groups(client):
            taken[group] -= 1
            if not taken[group]:
                del taken[group]

    def _taken(self, client: Client) -> Counter[Group]:
        return self._publishing if client.publishes else self._watching


def _groups(client: Client) -> Iterator[Group]:
    """Yield the groups of a client. A token also counts for the key that created it."""
    yield "all", ""
    yield "address", address_group(client.address)
    if client.identity.key:
        yield "key", client.identity.key
    if client.identity.token:
        yield "token", client.identity.token
