"""WebSocket frames as a server writes them: whole, unmasked, without extensions (RFC 6455 §5.2)."""

from typing import Final

PING: Final = b"\x89\x00"


def text_frame(payload: bytes) -> bytes:
    """One final text frame around `payload` (UTF-8)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload
