"""Flip a bit in a file, as a failing disk or memory does. SQLite does not detect it."""

from pathlib import Path


def flip(path: Path, where: bytes, bit: int = 0x40) -> None:
    """Flip a bit of the last byte of `where` in a closed file (0x80 makes it invalid UTF-8)."""
    content = path.read_bytes()
    assert where in content
    path.write_bytes(content.replace(where, where[:-1] + bytes([where[-1] ^ bit])))
