"""Connection limits: for watchers and, separately, for WebSocket producers; in total and per client.

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

Group: TypeAlias = tuple[str, str]  # clients counted together: all, or all of one address, key or token


class ConnectionLimiter:
    """Count connected clients: add a client with `take`, and remove it with `give_back`."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._watching: Counter[Group] = Counter()
        self._publishing: Counter[Group] = Counter()

    def apply_settings(self, settings: Settings) -> None:
        """Apply reloaded settings. Connected clients stay connected."""
        self._limits = settings.limits

    def require(self, client: Client) -> None:
        """Check the limits for another client. Raises TooManyConnections, TooManyOfAddress, TooManyOfKey."""
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
        """Add a client to the count."""
        self._taken(client).update(_groups(client))

    def give_back(self, client: Client) -> None:
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
    yield "address", counted_as(client.address)
    if client.identity.key:
        yield "key", client.identity.key
    if client.identity.token:
        yield "token", client.identity.token
