"""The address of a client, including behind proxies. Proxies report it in X-Forwarded-For, but any client can too.

Each proxy appends the address of its peer. So the list is read from the right, as long as a trusted proxy wrote the
entry. The first address that is not a trusted proxy's is the client's.
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
    """Parse networks such as `127.0.0.0/8` or `::1`. Raises ValueError."""
    return tuple(map(ipaddress.ip_network, texts))


def within(address: str, among: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks. Text such as `unix` is in none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in among)


def counted_as(address: str) -> str:
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


def client_address(peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network]) -> str:
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
