"""Rate limits: a token bucket for each key, and for each address without one."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

import trio

from progressd.auth.authenticator import Authenticator
from progressd.auth.client_address import client_address, counted_as, networks, within
from progressd.config.settings import Settings
from progressd.core.errors import RateLimited, Unauthorized

MAX_BUCKETS: Final = 10_000  # clients that are remembered, about 200 bytes each


class RateLimitState(NamedTuple):
    """What a client has left: whole requests, and in how many seconds it has all of them again."""

    per_minute: int
    burst: int
    remaining: int
    reset_in: float


class RateLimiter:
    """Buckets by client; `now` is in seconds of any clock. Does no I/O."""

    def __init__(self, per_minute: int, burst: int) -> None:
        self.per_minute = per_minute
        self.burst = burst
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was taken out, and when, oldest first

    def use(self, per_minute: int, burst: int) -> None:
        """Other limits from here on."""
        self.per_minute, self.burst = per_minute, burst

    def take(self, client: str, now: float) -> RateLimitState:
        """Count a request. Raises RateLimited."""
        used = self._left_over(client, now) + 1
        if used > self.burst + 1e-6:  # who comes again exactly when told must not fail by a rounding
            wait = math.ceil((used - self.burst) * 60 / self.per_minute)
            raise RateLimited(f"at most {self.per_minute} requests a minute, {self.burst} of them at once", wait)
        self._used[client] = used, now
        self._used.move_to_end(client)
        if len(self._used) > MAX_BUCKETS:
            self._used.popitem(last=False)
        return self._standing(used)

    def standing(self, client: str, now: float) -> RateLimitState:
        """What a client has left, without counting anything."""
        return self._standing(self._left_over(client, now))

    def _left_over(self, client: str, now: float) -> float:
        used, since = self._used.get(client, (0.0, now))
        return max(0.0, used - (now - since) * self.per_minute / 60)

    def _standing(self, used: float) -> RateLimitState:
        return RateLimitState(self.per_minute, self.burst, int(self.burst - used), used * 60 / self.per_minute)


Headers: TypeAlias = Iterable[tuple[bytes, bytes]]


class RequestRates:
    """`peer` is the address of the other end of the connection, `headers` are the request's, names in lower case."""

    def __init__(self, settings: Settings, authenticator: Authenticator) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._rates = RateLimiter(settings.limits.rate_limit_per_minute, settings.limits.rate_limit_burst)

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._settings = settings
        self._rates.use(settings.limits.rate_limit_per_minute, settings.limits.rate_limit_burst)

    def limits(self, peer: str, headers: Headers) -> bool:
        """Whether the sender may ask only so often."""
        return not within(self.address(peer, headers), networks(self._settings.limits.exempt_addresses))

    def standing(self, peer: str, headers: Headers) -> RateLimitState:
        """How often it may still ask."""
        return self._rates.standing(self._client(peer, headers), trio.current_time())

    def take(self, peer: str, headers: Headers) -> RateLimitState | None:
        """Count a request; None: of a sender that may ask as often as it likes. Raises RateLimited."""
        if not self.limits(peer, headers):
            return None
        return self._rates.take(self._client(peer, headers), trio.current_time())

    def _client(self, peer: str, headers: Headers) -> str:
        """The key, or the address of who comes without a good one."""
        try:
            key = self._authenticator.who(list(headers), "").key
        except Unauthorized:
            key = ""
        return key or counted_as(self.address(peer, headers))

    def address(self, peer: str, headers: Headers) -> str:
        """The sender's address, also behind proxies."""
        server = self._settings.server
        return client_address(peer, headers, networks(server.trusted_proxies))
