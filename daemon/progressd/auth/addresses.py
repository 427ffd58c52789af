"""Whose address a request comes from, also behind proxies. Those say it in a header, and so may anybody else.

Each proxy appends the address that it was asked from. So the list is read from the right, as long as the one who wrote
the entry is a proxy that is trusted; the first other address is the client's.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from progressd.config.settings import Forwarding

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

XFF: Final = "X-Forwarded-For"

_BACKWARDS = re.compile(r"""(?:[^",]|"(?:[^"]|"\\)*"(?!\\))*+(?=,|\Z)""", re.DOTALL)  # an element, from its end
_PAIR = re.compile(  # may be empty
    r"""[ \t]*(?:([^\s=;,"]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))[ \t]*)?(?:;|\Z)""", re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
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


def client_address(
    peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network], header: Forwarding = XFF
) -> str:
    """The client's address, from that of the peer and the header that the trusted proxies write.

    Any other, the client may have written: a proxy lets through what it does not know.
    """
    if not trusted or not within(peer, trusted):
        return peer
    client = peer
    for said in _said(headers, header):
        if not within(client, trusted):
            break
        if not _is_address(said):
            return client  # a proxy that hides it, or nonsense
        client = said
    return client


def _said(headers: Iterable[tuple[bytes, bytes]], header: Forwarding) -> Iterator[str]:
    """What the proxies have said, the nearest first."""
    name = header.lower().encode()
    text = ",".join([value.decode("latin-1") for key, value in headers if key.lower() == name])
    if header == XFF:
        return (_without_port(element.strip()) for element in reversed(text.split(",")))
    return (_without_port(_of_forwarded(element)) for element in _elements(text))


def _elements(text: str) -> Iterator[str]:
    """The elements of a `Forwarded`, the last one first, up to one that is malformed (RFC 7239, 4).

    Read backwards: there may be quotes to the left that the client has never closed, and commas within others. A quote
    is one of a quoted string where a backslash stands before it; before the first of a string there is always `=`.
    """
    backwards, place = text[::-1], 0
    while place <= len(backwards) and (found := _BACKWARDS.match(backwards, place)):
        yield found[0][::-1]
        place = found.end() + 1


def _of_forwarded(element: str) -> str:
    """What it says under `for`; "" where it does not, says it twice, or is malformed."""
    said, place = [""], 0
    while place < len(element):
        found = _PAIR.match(element, place)
        if found is None:
            return ""
        if found[1] and found[1].lower() == "for":
            said.append(found[3] if found[2] is None else _ESCAPED.sub(r"\1", found[2]))
        place = found.end()
    return said[-1] if len(said) == 2 else ""


def _without_port(text: str) -> str:
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
