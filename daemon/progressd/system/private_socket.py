"""A datagram socket in a directory that only this user may enter. Imports little, for `progressd run`."""

import os
import socket
from contextlib import suppress


class PrivateSocket:
    """A bound, non-blocking datagram socket at `path`. Raises OSError."""

    def __init__(self) -> None:
        self._directory = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"progressd-{os.urandom(8).hex()}")  # noqa: S108, the name is random
        os.mkdir(self._directory, 0o700)
        self.path = f"{self._directory}/notify"
        try:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            os.rmdir(self._directory)
            raise
        try:
            self.socket.bind(self.path)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close and delete the socket."""
        self.socket.close()
        with suppress(OSError):
            os.unlink(self.path)
        with suppress(OSError):
            os.rmdir(self._directory)
