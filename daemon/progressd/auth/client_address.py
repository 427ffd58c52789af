"""Whose address a request comes from, also behind proxies. Those say it in X-Forwarded-For, and so may anybody else.

Each proxy appends the address that it was asked from. So the list is read from the right, as long as the one who wrote
the entry is a proxy that is trusted; the first other address is the client's.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORT = re.compile(r"(?:\[(.*)\]|([^:]*))(?::[0-9]+)?")


@lru_cache(maxsize=64)
def networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """From `127.0.0.0/8` or `::1`. Raises ValueError."""
    return tuple(map(ipaddress.ip_network, texts))


def within(address: str, among: Iterable[Network]) -> bool:
    """Whether an address is in one of the networks; what is no address, such as `unix`, is in none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in among)


def counted_as(address: str) -> str:
    """What an address counts as in limits: IPv6 by /64, which is what one client gets and may use all of."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def client_address(peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network]) -> str:
    """Return the client's address, from that of the peer and the X-Forwarded-For that trusted proxies write."""
    if not trusted or not within(peer, trusted):
        return peer
    client = peer
    text = ",".join([value.decode("latin-1") for name, value in headers if name.lower() == b"x-forwarded-for"])
    for said in map(_without_port, reversed(text.split(","))):
        if not within(client, trusted):
            break
        if not _is_address(said):
            return client  # a proxy that hides it, or nonsense
        client = said
    return client


def _without_port(text: str) -> str:
    text = text.strip()
    if _is_address(text):
        return text
    found = _PORT.fullmatch(text)
    return (found[1] or found[2] or "") if found else ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
