"""The errors of commands that cannot talk to a daemon: the client's sentence, or a better one."""

from typing import Final
from urllib.parse import urlsplit

from progressd.cli.remote import Remote
from progressd.client.errors import APIError, ConnectError, StreamClosed
from progressd.core.close_codes import CREDENTIALS_EXPIRED

A_KEY: Final = "set PROGRESSD_KEY or --key-file (progressd keys add NAME on the daemon's machine makes a key)"
OTHER_KEY: Final = "use another key with PROGRESSD_KEY or --key-file"
FOREIGN: Final = frozenset({200, 400, 404, 405, 501})  # of progressd with a sentence; a proxy before it has others

GATEWAY: Final = frozenset({502, 503, 504})  # of a proxy; progressd has a sentence with its own


def sentence(error: Exception, remote: Remote | None) -> str:
    """The sentence for an error of the client that talked to this daemon."""
    if remote is None:
        return str(error)
    url = remote.url
    if isinstance(error, StreamClosed) and error.code == CREDENTIALS_EXPIRED.code:
        return f"the key for {url} has expired or was revoked: {OTHER_KEY}"
    if isinstance(error, APIError) and error.status == 401:
        return f"{error}: {OTHER_KEY}" if remote.key else f"{url} requires a key: {A_KEY}"
    if isinstance(error, APIError) and error.code == "forbidden":
        return f"{error}: {OTHER_KEY}"
    if isinstance(error, ConnectError) and (host := _unknown_host(url)):
        return f"cannot resolve the host name {host} of {url}: name the daemon with --url or PROGRESSD_URL"
    bare = f"{url.rstrip('/')} answered with HTTP status"
    if isinstance(error, APIError) and error.status in FOREIGN and str(error).startswith(bare):
        return f"{url} answers, but is not progressd (HTTP status {error.status})"
    if isinstance(error, APIError) and error.status in GATEWAY and str(error).startswith(bare):
        return f"the proxy at {url} cannot reach the daemon (HTTP status {error.status})"
    return str(error)


def _unknown_host(url: str) -> str | None:
    """The host in this address, if its name leads nowhere."""
    import socket

    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return host
    return None
