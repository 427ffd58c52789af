"""Having files on the disk, so that a power cut does not take them."""

import os
from pathlib import Path


def sync(*paths: Path) -> None:
    """Of a directory it is the names in it. Blocks. Raises OSError."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
