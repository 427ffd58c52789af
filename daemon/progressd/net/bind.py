"""The listening sockets: inherited from systemd or bound here, all plain and non-blocking."""

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
from progressd.net.listener import BACKLOG, ListeningSocket
from progressd.system.systemd import inherited_sockets

LISTENERS = "`sudo ss -ltnp sport = :{}`"  # shows the processes that listen on a port

log = structlog.get_logger(__name__)


class Sockets(NamedTuple):
    """Listening sockets: TCP for the one port, Unix for producers on this host."""

    tcp: list[ListeningSocket]
    unix: list[ListeningSocket]
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The daemon's URL."""
        return f"{self.scheme}://{_host_port(*self.tcp[0].getsockname()[:2])}"


@contextmanager
def open_sockets(settings: Settings, environ: MutableMapping[str, str]) -> Iterator[Sockets]:
    """Take the sockets from systemd, and bind the remaining ones. Blocks for name resolution. Raises SettingsError."""
    with contextlib.ExitStack() as closing:

        def listening(sock: socket.socket, *, held_by_systemd: bool = False) -> ListeningSocket:
            return closing.enter_context(ListeningSocket(sock.detach(), held_by_systemd=held_by_systemd))

        inherited = [listening(sock, held_by_systemd=True) for sock in inherited_sockets(environ)]
        unix = [sock for sock in inherited if sock.family is socket.AF_UNIX]
        tcp = [sock for sock in inherited if sock.family is not socket.AF_UNIX]
        if tcp:
            _warn_of_other_address(settings.server, tcp)
        else:
            tcp = [listening(sock) for sock in _bind_tcp(settings.server.host, settings.server.port)]
        if not unix:
            path = settings.ingest.socket
            unix = [listening(_bind_unix(path, int(settings.ingest.socket_mode, 8)))]
            closing.callback(path.unlink, missing_ok=True)
        for sock in tcp:
            require_keys(settings, sock.getsockname()[0])
        yield Sockets(tcp, unix, "https" if settings.server.tls_cert else "http")


def require_keys(settings: Settings, address: str) -> None:
    """Raise SettingsError if other machines can reach the daemon at this address without a key."""
    host = address.partition("%")[0]
    if (
        not (settings.auth.required or settings.server.allow_unauthenticated)
        and not ipaddress.ip_address(host).is_loopback
    ):
        raise SettingsError(
            f"other machines can reach {host}, and no key is required: require keys (auth.required = true; see "
            "progressd keys --help), listen on 127.0.0.1 (server.host), or allow it with --allow-unauthenticated"
        )


def _warn_of_other_address(server: Server, tcp: list[ListeningSocket]) -> None:
    wanted, default = (server.host, server.port), (Server().host, Server().port)
    held = [sock.getsockname()[:2] for sock in tcp]
    if wanted != default and wanted not in held:
        log.warning(
            "server.host and server.port are ignored: systemd holds the port (sudo systemctl edit progressd.socket)",
            settings=_host_port(*wanted),
            systemd=", ".join(_host_port(*address) for address in held),
        )


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_tcp(host: str, port: int) -> Iterator[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise SettingsError(f"server.host = {host!r}: no such address ({error.strerror})") from error
    for family, _, _, _, address in found:
        try:
            yield socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            raise SettingsError(_bind_error(host, port, error)) from error
        if port == 0:
            return  # a second address would get another free port


def _bind_error(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use: stop the process that {LISTENERS.format(port)} shows,"
            f" or choose another with --port {port + 1}"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs root: choose a port above 1023 (--port 8080)"
    return f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"


def _bind_unix(path: Path, mode: int) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if path.is_socket() and not path.is_symlink():
                path.unlink(missing_ok=True)  # left by a killed daemon
        except OSError:
            pass  # not a socket: bind reports the error
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
    return listening
