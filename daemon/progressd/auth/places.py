"""The places of those who watch, over a WebSocket, an event stream or a long poll: so many, and so many an address."""

from collections import Counter

from progressd.auth.addresses import counted_as
from progressd.config import Settings
from progressd.core.errors import TooManyConnections, TooManyOfAddress


class Places:
    """Counts who is there. Whoever takes a place gives it back."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._of_address: Counter[str] = Counter()

    def use(self, settings: Settings) -> None:
        """Settings that have been read again; who is there already stays."""
        self._limits = settings.limits

    def require(self, address: str) -> None:
        """Raises TooManyConnections, TooManyOfAddress."""
        limits = self._limits
        if self._of_address.total() >= limits.max_connections:
            raise TooManyConnections(f"all {limits.max_connections} connections are in use")
        if self._of_address[counted_as(address)] >= limits.max_connections_per_address:
            raise TooManyOfAddress(f"{address} has {limits.max_connections_per_address} connections already")

    def take(self, address: str) -> None:
        """One comes."""
        self._of_address[counted_as(address)] += 1

    def give_back(self, address: str) -> None:
        """One leaves."""
        counted = counted_as(address)
        self._of_address[counted] -= 1
        if not self._of_address[counted]:
            del self._of_address[counted]
