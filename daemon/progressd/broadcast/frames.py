"""What goes over the wire: WebSocket frames, whole, unmasked and without extensions, and server-sent events."""

from typing import Final

PING: Final = b"\x89\x00"


def text_frame(payload: bytes) -> bytes:
    """One final text frame around `payload` (UTF-8), as a server writes it (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def server_sent_event(payload: bytes, id_: str = "") -> bytes:
    """One event around `payload`, JSON on one line, with the id from which a client resumes (HTML §9.2.5)."""
    head = f"id: {id_}\n".encode() if id_ else b""
    return b"%bdata: %b\n\n" % (head, payload)
