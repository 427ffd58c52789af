"""The transport of a producer's events: HTTP or the daemon's Unix socket, from arguments or the environment."""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from progressd.client.endpoint import DEFAULT_URL, read_key
from progressd.client.errors import ClientError, ConnectError, ResponseTimeout
from progressd.client.pending import Event, EventAnswer
from progressd.core.json import UNDECODABLE

ANSWER_TIMEOUT: Final = 60.0  # seconds
MAX_ANSWER: Final = 65536  # bytes of an answer


class EventTransport(Protocol):
    """A connection to the daemon. `connect` and `exchange` may block."""

    def connect(self) -> None:
        """Connect, unless the connection is open. Raises ConnectError."""

    def exchange(self, events: Sequence[Event]) -> list[EventAnswer]:
        """Report events, wait until they are durable, and return the answer to each. Raises ClientError."""

    def close(self) -> None:
        """Close the connection."""


def transport_to(
    url: str | None, path: str | os.PathLike[str] | None, key: str | None, environ: Mapping[str, str]
) -> Callable[[], EventTransport]:
    """Return a function that makes the transport to a URL, to the socket at `path`, or to the one in the environment.

    The function raises InvalidURL, InvalidKey. It imports nothing: if a program forks while a thread imports a module,
    the child has only half of that module.
    """
    if url is None and path is None:
        url, path = environ.get("PROGRESSD_URL"), environ.get("PROGRESSD_SOCKET")
    if url is None and path is not None:
        socket_path = Path(path)
        return lambda: UnixSocketTransport(socket_path)
    from progressd.client.rest import RestClient

    address = url or DEFAULT_URL
    given = key or environ.get("PROGRESSD_KEY")
    key_file = environ.get("PROGRESSD_KEY_FILE")
    return lambda: RestClient(address, read_key(Path(key_file)) if given is None and key_file else given)


class UnixSocketTransport:
    """A connection to the socket at `path`, opened on demand. It is not thread-safe."""

    def __init__(self, path: Path, timeout: float = ANSWER_TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._open = contextlib.ExitStack()
        self._socket: socket.socket | None = None

    def exchange(self, events: Sequence[Event]) -> list[EventAnswer]:
        """Report events, wait until they are durable, and return the answer to each. Raises ClientError."""
        lines = [msgspec.json.encode({**event, "ref": number}) + b"\n" for number, event in enumerate(events)]
        self.connect()
        assert self._socket is not None
        try:
            try:
                self._socket.sendall(b"".join(lines))
                return [self._answer() for _ in events]
            except TimeoutError:
                raise ResponseTimeout(f"{self._path} did not answer within {self._timeout:g} seconds") from None
            except OSError as error:
                raise ResponseTimeout(f"the connection to {self._path} broke: {error.strerror}") from None
        except BaseException:  # a late answer would be read as the answer to a different event
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. The next exchange opens a new one."""
        self._socket = None
        self._open.close()

    def connect(self) -> None:
        """Connect, unless the connection is open. Raises ConnectError."""
        if self._socket is not None:
            return
        with contextlib.ExitStack() as opening:
            try:
                daemon = opening.enter_context(socket.socket(socket.AF_UNIX))
                daemon.settimeout(self._timeout)
                daemon.connect(str(self._path))
            except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
                reason = getattr(error, "strerror", None) or error
                raise ConnectError(f"no daemon answers at {self._path}: {reason}") from None
            self._reader = opening.enter_context(daemon.makefile("rb"))
            self._open = opening.pop_all()
            self._socket = daemon

    def _answer(self) -> EventAnswer:
        line = self._reader.readline(MAX_ANSWER)
        if not line:
            raise ResponseTimeout(f"the daemon at {self._path} closed the connection")
        try:
            return msgspec.json.decode(line, type=EventAnswer)
        except UNDECODABLE:
            raise ClientError(f"{self._path} is not the socket of progressd") from None
