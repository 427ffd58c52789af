"""Rate limits: a token bucket for each key, and for each address without a key."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from progressd.auth.client_address import counted_as, networks, within
from progressd.auth.identity import Client
from progressd.config.settings import Settings
from progressd.core.errors import RateLimited

MAX_BUCKETS: Final = 10_000  # about 200 bytes each


class RateLimitState(NamedTuple):
    """A client's quota: the remaining whole requests, and the seconds until the full burst is available again."""

    per_minute: int
    burst: int
    remaining: int
    reset_in: float


class RateLimiter:
    """Count requests by client. Watch tokens count for the address, not for the key that created them."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = trio.current_time) -> None:
        self._limits = settings.limits
        self._clock = clock
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests, and when; oldest first

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings."""
        self._limits = settings.limits

    def exempts(self, address: str) -> bool:
        """Return whether an address has no limit."""
        return within(address, networks(self._limits.exempt_addresses))

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
    return identity.key if identity.key and not identity.token else counted_as(client.address)
