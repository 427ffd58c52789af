"""WebSocket handshakes: parse a request, and write the response (RFC 6455 §4.2).

A general HTTP library takes longer for these than the daemon for the rest of a handshake. Only valid and usual requests
are accepted here. The HTTP server answers all others.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

PREFIX: Final = b"GET /ws"

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
# Possessive quantifiers: the time is linear, whatever a client sends.
_HEAD: Final = re.compile(
    rb"GET (/ws(?:[/?][\x21\x22\x24-\x7e]*+)?) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n"
)


class HandshakeRequest(NamedTuple):
    """A WebSocket handshake. Header names are in lower case."""

    target: str
    headers: Sequence[tuple[bytes, bytes]]
    host: str
    key: bytes
    subprotocols: Sequence[str]
    size: int  # bytes


def read_handshake(data: bytes) -> HandshakeRequest | None:
    """Return the WebSocket handshake that the bytes start with, or None."""
    head = _HEAD.match(data)
    if head is None:
        return None
    lines = [line.partition(b":") for line in head[2].split(b"\r\n")[:-1]]
    headers = [(name.lower(), value.strip(b" \t")) for name, _, value in lines]
    last = dict(headers)
    connection = last.get(b"connection", b"").lower().split(b",")
    hosts = [value for name, value in headers if name == b"host"]
    offers = b",".join([value for name, value in headers if name == b"sec-websocket-protocol"])
    extensions = b",".join([value for name, value in headers if name == b"sec-websocket-extensions"])
    if (
        last.get(b"upgrade", b"").lower() != b"websocket"
        or b"upgrade" not in [option.strip(b" \t") for option in connection]
        or last.get(b"sec-websocket-version") != b"13"
        or b"sec-websocket-key" not in last
        or len(hosts) != 1
        or b"content-length" in last
        or b"transfer-encoding" in last
        or not (hosts[0] + offers + extensions).isascii()
    ):
        return None
    return HandshakeRequest(
        target=head[1].decode(),
        headers=headers,
        host=hosts[0].decode(),
        key=last[b"sec-websocket-key"],
        subprotocols=[offer.strip() for offer in offers.decode().split(",")] if offers else [],
        size=head.end(),
    )


def accepting(key: bytes, subprotocol: str | None) -> bytes:
    """Return the response that accepts a handshake."""
    proof = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    chosen = b"" if subprotocol is None else b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (proof, chosen)
    )


def rejecting(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return the response that rejects a handshake."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [b"%b: %b" % header for header in (*headers, (b"Content-Length", str(len(body)).encode()))]
    return b"\r\n".join([*lines, b"", body])
