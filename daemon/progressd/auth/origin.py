"""Keeps the pages of other sites out: a browser lets any page send requests to any host that it can reach.

`Origin` tells which site's page asks. A page can also make its own name lead to this machine (DNS rebinding), and is of
the same origin then; but the browser still says that name in `Host`. An address cannot be made to lead elsewhere.
"""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from progressd.config.settings import Server
from progressd.core.errors import Forbidden

LONGEST: Final = 300  # characters of a host: a name has 253 at most, and a port follows

_HOST: Final = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")  # RFC 9110 §7.2


def check_host(host: str, server: Server) -> None:
    """`host`: the header, "" where absent, which no browser leaves out. Raises Forbidden."""
    if not _is_possible(host):
        raise Forbidden(f"{host[:200]} is no name that a host can have")
    name = _name(host)
    if not host or name == "localhost" or name.endswith(".localhost") or _is_address(name):
        return
    if name not in map(str.lower, (server.host, *server.allowed_hosts)) and "*" not in server.allowed_hosts:
        raise Forbidden(f"{host[:200]} is no name of this daemon: add it to server.allowed_hosts to change that")


def check_origin(origin: str, host: str, server: Server) -> None:
    """`origin` and `host` are those headers, "" where absent. Raises Forbidden for the page of another site.

    Under TLS a page that came without is another site's, for anybody on the way can have written it. Where the daemon
    speaks no TLS, a proxy before it may, and then either scheme is its own.
    """
    if not origin or origin in server.allowed_origins:
        return
    try:
        site = urlsplit(origin)
    except ValueError:  # no URL at all
        site = urlsplit("")
    if origin == "null":
        raise Forbidden(
            "pages without an origin, as those opened from a file, are not let in here: have a web server show it, and "
            "add that one's address to server.allowed_origins"
        )
    schemes = ("https",) if server.tls_cert else ("http", "https")
    if not site.netloc or site.netloc.lower() != host.lower() or site.scheme not in schemes:
        raise Forbidden(f"pages of {origin[:200]} are not let in here: add it to server.allowed_origins to change that")


def _name(host: str) -> str:
    """The host without its port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].removesuffix(".").lower()


def _is_possible(host: str) -> bool:
    """Whether it is a host and maybe a port, with labels of 1 to 63 letters each (RFC 1035 §2.3.4).

    Routing a request fails over longer or empty labels.
    """
    if len(host) > LONGEST or not _HOST.fullmatch(host):  # a longer one would take long to look at
        return False
    try:
        host.partition(":")[0].lower().encode("idna")
    except UnicodeError:
        return False
    return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
