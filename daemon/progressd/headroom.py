"""What has to stay free on the disk, whoever brings how many files at the same time."""

import shutil
from pathlib import Path
from typing import Final

from progressd.core.errors import NoSpace

LOOK_EVERY: Final = 1024 * 1024  # bytes written, by all together, after which the disk is asked again


class Headroom:
    """Asked before anything is written."""

    def __init__(self, directory: Path, least: int) -> None:
        self.least = least  # bytes
        self._directory = directory
        self._until_look = 0  # bytes that may be written

    def require(self, size: int) -> int:
        """How many bytes there are beyond these. Raises NoSpace."""
        left = shutil.disk_usage(self._directory).free - self.least - size
        if left < 0:
            raise NoSpace("there is not enough space left on the daemon's disk for this")
        return left

    def take(self, size: int) -> None:
        """So many bytes are going to be written. Raises NoSpace."""
        if size > self._until_look:
            self._until_look = size + min(self.require(size), LOOK_EVERY)
        self._until_look -= size
