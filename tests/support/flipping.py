"""A byte of a file that has changed by itself, as a failing disk or memory leaves it: SQLite does not notice."""

from pathlib import Path


def flip(path: Path, where: bytes, bit: int = 0x40) -> None:
    """Flip a bit of the last of these bytes (0x80: no UTF-8), wherever the file, which nobody has open, has them."""
    content = path.read_bytes()
    assert where in content
    path.write_bytes(content.replace(where, where[:-1] + bytes([where[-1] ^ bit])))
