"""How often whoever sends a request may still ask: by its key, or by its address, over HTTP and WebSocket alike."""

from collections.abc import Iterable
from typing import TypeAlias

import trio

from progressd.auth.addresses import client_address, counted_as, networks, within
from progressd.auth.admission import Admission
from progressd.auth.limits import RateLimits, Standing
from progressd.config import Settings
from progressd.core.errors import Unauthorized

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]


class Allowance:
    """`peer` is the address of the other end of the connection, `headers` are the request's, names in lower case."""

    def __init__(self, settings: Settings, admission: Admission) -> None:
        self._settings = settings
        self._admission = admission
        self._rates = RateLimits(settings.limits.rate_limit_per_minute, settings.limits.rate_limit_burst)

    def use(self, settings: Settings) -> None:
        """Settings that have been read again."""
        self._settings = settings
        self._rates.use(settings.limits.rate_limit_per_minute, settings.limits.rate_limit_burst)

    def limits(self, peer: str, headers: Headers) -> bool:
        """Whether the sender may ask only so often."""
        return not within(self.address(peer, headers), networks(self._settings.limits.unlimited))

    def standing(self, peer: str, headers: Headers) -> Standing:
        """How often it may still ask."""
        return self._rates.standing(self._client(peer, headers), trio.current_time())

    def take(self, peer: str, headers: Headers) -> Standing | None:
        """Count a request; None: of a sender that may ask as often as it likes. Raises RateLimited."""
        if not self.limits(peer, headers):
            return None
        return self._rates.take(self._client(peer, headers), trio.current_time())

    def _client(self, peer: str, headers: Headers) -> str:
        """The key, or the address of who comes without a good one."""
        try:
            key = self._admission.who(list(headers), "").key
        except Unauthorized:
            key = ""
        return key or counted_as(self.address(peer, headers))

    def address(self, peer: str, headers: Headers) -> str:
        """The sender's address, also behind proxies."""
        server = self._settings.server
        return client_address(peer, headers, networks(server.trusted_proxies))
