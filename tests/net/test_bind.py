"""The listening sockets: what is bound, and the errors."""

import os
import socket
import stat
from pathlib import Path

import pytest
from progressd.config.settings import Settings
from progressd.core.errors import SettingsError
from progressd.net.bind import open_sockets
from support.daemon import settings_in
from support.waiting import open_files


def test_the_sockets_listen_and_do_not_block(tmp_path: Path) -> None:
    with open_sockets(settings_in(tmp_path), {}) as sockets:
        host, port = sockets.tcp[0].getsockname()
        assert sockets.url == f"http://{host}:{port}"
        socket.create_connection((host, port)).close()
        with socket.socket(socket.AF_UNIX) as producer:
            producer.connect(str(tmp_path / "ingest.sock"))
        assert not any(one.getblocking() for one in [*sockets.tcp, *sockets.unix])


def test_the_sockets_are_closed_and_the_unix_socket_removed(tmp_path: Path) -> None:
    with open_sockets(settings_in(tmp_path), {}) as sockets:
        pass
    assert [one.fileno() for one in [*sockets.tcp, *sockets.unix]] == [-1, -1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["0660", "0600", "666"])
def test_the_unix_socket_has_the_configured_mode(tmp_path: Path, mode: str) -> None:
    before = os.umask(0o077)
    try:
        with open_sockets(settings_in(tmp_path, ingest={"socket_mode": mode}), {}):
            assert stat.S_IMODE((tmp_path / "ingest.sock").stat().st_mode) == int(mode, 8)
            assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "ingest.sock"))
    with open_sockets(settings_in(tmp_path), {}), socket.socket(socket.AF_UNIX) as producer:
        producer.connect(str(tmp_path / "ingest.sock"))


def test_the_url_of_an_ipv6_address_has_brackets(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with open_sockets(settings_in(tmp_path, server={"host": "::1"}), {}) as sockets:
        assert sockets.url == f"http://[::1]:{sockets.tcp[0].getsockname()[1]}"


def fails(settings: Settings, error: str) -> None:
    """Check that the sockets cannot be opened, and that none is left."""
    before = open_files()
    with pytest.raises(SettingsError, match=f"^{error}"), open_sockets(settings, {}):
        pass
    assert open_files() == before


def test_an_unusable_address_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        host, port = busy.getsockname()
        for server, error in (
            (
                {"port": port},
                rf"port {port} of {host} is in use: .* ss -ltnp sport = :{port}` .* --port {port + 1}$",
            ),
            ({"host": "no such host"}, "server.host = 'no such host': no such address"),
            ({"host": "192.0.2.1"}, r"cannot listen on 192\.0\.2\.1 port 0: Cannot assign requested address$"),
        ):
            fails(settings_in(tmp_path, server=server), error)
            assert not (tmp_path / "ingest.sock").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_requires_permission(tmp_path: Path, host: str) -> None:
    required = f"other machines can reach {host}, and no key is required: .*--allow-unauthenticated$"
    fails(settings_in(tmp_path, server={"host": host}), required)
    with open_sockets(settings_in(tmp_path, server={"host": host, "allow_unauthenticated": True}), {}):
        pass


def test_an_unusable_path_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ingest.sock"
    settings = settings_in(tmp_path, ingest={"socket": tmp_path / "none" / "ingest.sock"})
    fails(settings, r"cannot listen at .*/none/ingest.sock \(ingest.socket\): No such file")
    (tmp_path / "precious").write_text("precious")
    for occupy in (lambda: path.write_text("precious"), path.mkdir, lambda: path.symlink_to("precious")):
        occupy()
        before = path.lstat().st_ino
        fails(settings_in(tmp_path), f"cannot listen at {path} .*ingest.socket")
        assert path.lstat().st_ino == before
        path.rmdir() if path.is_dir() else path.unlink()
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        fails(settings_in(tmp_path), f"another progressd listens at {path}: stop it, or set ingest.socket")
        with socket.socket(socket.AF_UNIX) as producer:
            producer.connect(str(path))
