"""Protection against pages of other sites: browsers let any page send requests to any reachable host.

The Origin header names the site of the page. A page can also make its own name resolve to this machine (DNS rebinding),
which makes it the same origin. The browser still sends that name in Host. An IP address in Host cannot be rebound.
"""

import re
from typing import Final
from urllib.parse import urlsplit

from progressd.auth.limits import is_address
from progressd.config.settings import Server
from progressd.core.errors import Forbidden

MAX_HOST: Final = 300  # characters: a name has at most 253, followed by a port

_HOST: Final = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")  # RFC 9110 §7.2


def check_host(host: str, server: Server) -> None:
    """Check the Host header, "" if absent; browsers always send it. Raises Forbidden."""
    if not _is_valid(host):
        raise Forbidden(f"the Host header {host[:200]} is not a valid host name")
    name = _name(host)
    if not host or name == "localhost" or name.endswith(".localhost") or is_address(name):
        return
    if name not in map(str.lower, (server.host, *server.allowed_hosts)) and "*" not in server.allowed_hosts:
        raise Forbidden(f"the host {host[:200]} is not allowed: add it to server.allowed_hosts to allow it")


def check_origin(origin: str, host: str, server: Server) -> None:
    """Check the Origin and Host headers, "" if absent. Raises Forbidden for a page of another site.

    Under TLS, a page loaded without TLS counts as a page of another site: anybody on the network path can have changed
    it. A daemon without TLS may be behind a proxy with TLS, so it accepts both schemes.
    """
    if not origin or origin in server.allowed_origins:
        return
    try:
        site = urlsplit(origin)
    except ValueError:  # not a URL
        site = urlsplit("")
    if origin == "null":
        raise Forbidden(
            "pages without an origin, such as those opened from a file, are not allowed: serve the page from a web "
            "server, and add its origin to server.allowed_origins"
        )
    schemes = ("https",) if server.tls_cert else ("http", "https")
    if not site.netloc or site.netloc.lower() != host.lower() or site.scheme not in schemes:
        raise Forbidden(f"pages of {origin[:200]} are not allowed: add it to server.allowed_origins to allow them")


def _name(host: str) -> str:
    """Return the host without its port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].removesuffix(".").lower()


def _is_valid(host: str) -> bool:
    """Return whether the text is a host with an optional port, with labels of 1 to 63 characters (RFC 1035 §2.3.4).

    Quart's routing fails on longer or empty labels.
    """
    if len(host) > MAX_HOST or not _HOST.fullmatch(host):  # longer hosts would be slow to check
        return False
    try:
        host.partition(":")[0].lower().encode("idna")
    except UnicodeError:
        return False
    return True
