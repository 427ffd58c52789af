"""A byte of a file that has changed by itself, as a failing disk or memory leaves it: SQLite does not notice."""

from pathlib import Path


def flip(path: Path, where: bytes) -> None:
    """Flip a bit of the last of these bytes, wherever the file, which nobody has open, has them."""
    content = path.read_bytes()
    assert where in content
    path.write_bytes(content.replace(where, where[:-1] + bytes([where[-1] ^ 0x40])))
