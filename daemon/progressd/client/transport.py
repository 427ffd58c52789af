"""The way of events to a daemon, HTTP or its Unix socket: the one that is given, or that the environment names."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from progressd.client.endpoint import DEFAULT_URL, read_key
from progressd.client.pending import Event, EventAnswer


class EventTransport(Protocol):
    """A way to the daemon. The first two calls may block."""

    def connect(self) -> None:
        """Connect, unless that is so already. Raises NoDaemon."""

    def exchange(self, events: Sequence[Event]) -> list[EventAnswer]:
        """Report events, and wait until they are durable; the answer to each. Raises ClientError without them."""

    def close(self) -> None:
        """Leave."""


def way_to_daemon(
    url: str | None, socket: str | os.PathLike[str] | None, key: str | None, environ: Mapping[str, str]
) -> Callable[[], EventTransport]:
    """Return a function that opens the way to the address or the socket, or else to what the environment names.

    The way connects with the first exchange. The function raises BadUrl, BadKey. It imports nothing: a program that
    forks while a thread imports a module has half of that module in its child.
    """
    if url is None and socket is None:
        url, socket = environ.get("PROGRESSD_URL"), environ.get("PROGRESSD_SOCKET")
    if url is None and socket is not None:
        from progressd.client.unix_socket import LocalSocket

        path = socket
        return lambda: LocalSocket(Path(path))
    from progressd.client.rest import RestClient

    address = url or DEFAULT_URL
    given = key or environ.get("PROGRESSD_KEY")
    key_file = environ.get("PROGRESSD_KEY_FILE")
    return lambda: RestClient(address, read_key(Path(key_file)) if given is None and key_file else given)
