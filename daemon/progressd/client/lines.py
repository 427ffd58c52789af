"""The way of events to a daemon, HTTP or its Unix socket: the one that is given, or that the environment names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from progressd.client.address import DEFAULT_URL
from progressd.client.backlog import Answer, Event


class Lines(Protocol):
    """A way to the daemon. The first two calls may block."""

    def connect(self) -> None:
        """Connect, unless that is so already. Raises NoDaemon."""

    def exchange(self, events: Sequence[Event]) -> list[Answer]:
        """Report events, and wait until they are durable; the answer to each. Raises ClientError without them."""

    def close(self) -> None:
        """Leave."""


def open_lines(
    url: str | None, socket: str | os.PathLike[str] | None, key: str | None, environ: Mapping[str, str]
) -> Lines:
    """To the address or the socket, or else to what the environment names; connects with the first exchange.

    Raises BadUrl, BadKey.
    """
    if url is None and socket is None:
        url, socket = environ.get("PROGRESSD_URL"), environ.get("PROGRESSD_SOCKET")
    if url is None and socket is not None:
        from progressd.client.local import LocalSocket

        return LocalSocket(Path(socket))
    from progressd.client.credentials import read_key
    from progressd.client.rest import RestClient

    key = key or environ.get("PROGRESSD_KEY")
    if key is None and (path := environ.get("PROGRESSD_KEY_FILE")):
        key = read_key(Path(path))
    return RestClient(url or DEFAULT_URL, key)
