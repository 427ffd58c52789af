"""The daemon's listening sockets, given by systemd or bound here; all of them plain and non-blocking."""

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import structlog

from progressd.config.settings import Server, Settings
from progressd.core.errors import SettingsError
from progressd.net.accept import BACKLOG, ListeningSocket
from progressd.system.systemd import inherited_sockets

LISTENERS = "`sudo ss -ltnp sport = :{}`"  # the command that shows who listens on a port

log = structlog.get_logger(__name__)


class Sockets(NamedTuple):
    """For the one port, and for producers of this host."""

    tcp: list[ListeningSocket]
    unix: list[ListeningSocket]
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Where the daemon answers."""
        return f"{self.scheme}://{_pair(*self.tcp[0].getsockname()[:2])}"


@contextmanager
def open_sockets(settings: Settings, environ: MutableMapping[str, str]) -> Iterator[Sockets]:
    """Take what systemd passed on, and bind the rest. Raises SettingsError. Blocks while a name is looked up."""
    with contextlib.ExitStack() as closing:
        inherited = [closing.enter_context(ListeningSocket.over(one)) for one in inherited_sockets(environ)]
        for one in inherited:
            one.lasting = True
        unix = [one for one in inherited if one.family is socket.AF_UNIX]
        tcp = [one for one in inherited if one.family is not socket.AF_UNIX]
        if not tcp:
            bound = _bind_tcp(settings.server.host, settings.server.port)
            tcp = [closing.enter_context(ListeningSocket.over(one)) for one in bound]
        else:
            _tell_of_another_address(settings.server, tcp)
        if not unix:
            path = settings.ingest.socket
            unix = [closing.enter_context(ListeningSocket.over(_bind_unix(path, settings.ingest.socket_mode)))]
            closing.callback(path.unlink, missing_ok=True)
        for listening in tcp:
            require_keys(settings, listening.getsockname()[0])
        yield Sockets(tcp, unix, "https" if settings.server.tls_cert else "http")


def _tell_of_another_address(server: Server, tcp: list[ListeningSocket]) -> None:
    """Say so where the settings name an address, and systemd holds another."""
    wanted, default = (server.host, server.port), (Server().host, Server().port)
    held = [one.getsockname()[:2] for one in tcp]
    if wanted != default and wanted not in held:
        log.warning(
            "server.host and server.port have no say, for systemd holds the port: sudo systemctl edit progressd.socket",
            settings=_pair(*wanted),
            systemd=", ".join(_pair(*one) for one in held),
        )


def _pair(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def require_keys(settings: Settings, address: str) -> None:
    """Raises SettingsError where other machines reach the daemon at this address, and need no key."""
    host = address.partition("%")[0]
    if (
        not (settings.auth.required or settings.server.allow_unauthenticated)
        and not ipaddress.ip_address(host).is_loopback
    ):
        raise SettingsError(
            f"at the address {host} other machines reach the daemon, and everyone there could do everything: ask for "
            "keys (auth.required = true; see progressd keys --help), listen on 127.0.0.1 (server.host), or accept that "
            "with --allow-unauthenticated"
        )


def _bind_tcp(host: str, port: int) -> Iterator[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise SettingsError(f"server.host = {host!r}: no such address ({error.strerror})") from error
    for family, _, _, _, address in found:
        try:
            listening = socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            raise SettingsError(_why_not(host, port, error)) from error
        listening.setblocking(False)
        yield listening
        if port == 0:
            return  # a second address would get another free port


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use: stop what {LISTENERS.format(port)} shows,"
            f" or choose another with --port {port + 1}"
        )
    if error.errno == errno.EACCES:
        return f"port {port} may not be used without privileges: choose one above 1023 with --port 8080"
    return f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"


def _bind_unix(path: Path, mode: int) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if path.is_socket() and not path.is_symlink():
                path.unlink(missing_ok=True)  # left over by a daemon that was killed
        except OSError:
            pass  # there is nothing, or nothing of ours: to bind will tell
        else:
            raise SettingsError(f"another progressd listens at {path}: stop it, or set ingest.socket to another path")
    listening = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o777 & ~mode)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise SettingsError(f"cannot listen at {path} (ingest.socket): {error.strerror}") from error
    finally:
        os.umask(umask)
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening
