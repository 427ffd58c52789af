"""Connection limits: watchers and, apart from them, WebSocket producers; in total and for each client.

A watcher is a WebSocket, an event stream or a long poll.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from progressd.auth.client_address import counted_as, networks, within
from progressd.auth.identity import Client
from progressd.config.settings import Settings
from progressd.core.errors import TooManyConnections, TooManyOfAddress, TooManyOfKey

Group: TypeAlias = tuple[str, str]  # what is counted together: all clients, or those of one address, key or token


class ConnectionLimiter:
    """Counts connected clients. A client that is counted with `take` is uncounted with `give_back`."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._watching: Counter[Group] = Counter()
        self._publishing: Counter[Group] = Counter()

    def use(self, settings: Settings) -> None:
        """Apply reloaded settings. Clients that are already connected stay."""
        self._limits = settings.limits

    def require(self, client: Client) -> None:
        """Check that there is room. Raises TooManyConnections, TooManyOfAddress, TooManyOfKey."""
        limits, taken = self._limits, self._taken(client)
        limits_by_kind: dict[str, float] = {
            "all": limits.max_connections,
            "address": limits.max_connections_per_address,
            "key": limits.max_connections_per_key,
            "token": limits.max_connections_per_token,
        }
        if within(client.address, networks(limits.exempt_addresses)):
            limits_by_kind["address"] = math.inf
        full = {
            kind: limits_by_kind[kind] for kind, name in _groups(client) if taken[kind, name] >= limits_by_kind[kind]
        }
        if "all" in full:
            raise TooManyConnections(f"all {full['all']} connections are in use")
        if "address" in full:
            raise TooManyOfAddress(f"{client.address} already has {full['address']} connections")
        for kind in full:
            raise TooManyOfKey(f"this {kind} already has {full[kind]} connections")

    def take(self, client: Client) -> None:
        """Count a client."""
        self._taken(client).update(_groups(client))

    def give_back(self, client: Client) -> None:
        """Uncount a client."""
        taken = self._taken(client)
        for group in _groups(client):
            taken[group] -= 1
            if not taken[group]:
                del taken[group]

    def _taken(self, client: Client) -> Counter[Group]:
        return self._publishing if client.publishes else self._watching


def _groups(client: Client) -> Iterator[Group]:
    """Yield the groups of a client. A token also counts for the key that it was made with."""
    yield "all", ""
    yield "address", counted_as(client.address)
    if client.identity.key:
        yield "key", client.identity.key
    if client.identity.token:
        yield "token", client.identity.token
