"""The listening sockets: what is bound, and the errors."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from progressd.core.errors import SettingsError
from progressd.net.bind import open_sockets
from support.daemon import settings_in


@pytest.fixture
def busy() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


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


def test_the_unix_socket_of_a_running_daemon_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ingest.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with (
            pytest.raises(SettingsError, match=f"^another progressd listens at {path}: stop it, or set ingest.socket"),
            open_sockets(settings_in(tmp_path), {}),
        ):
            raise AssertionError("two daemons share a socket")
        with socket.socket(socket.AF_UNIX) as producer:
            producer.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_other_files_are_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ingest.sock"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            (tmp_path / "precious").write_text("precious")
            path.symlink_to("precious")
    before = path.lstat().st_ino
    with (
        pytest.raises(SettingsError, match=f"^cannot listen at {path} .*ingest.socket"),
        open_sockets(settings_in(tmp_path), {}),
    ):
        raise AssertionError("the file was replaced")
    assert path.lstat().st_ino == before


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, ingest={"socket": tmp_path / "none" / "ingest.sock"})
    with (
        pytest.raises(SettingsError, match=r"^cannot listen at .*/none/ingest.sock \(ingest.socket\): No such file"),
        open_sockets(settings, {}),
    ):
        raise AssertionError("nothing is bound")


def test_a_port_in_use_is_an_error_with_a_remedy(tmp_path: Path, busy: tuple[str, int]) -> None:
    host, port = busy
    with (
        pytest.raises(
            SettingsError,
            match=rf"^port {port} of {host} is in use: .* ss -ltnp sport = :{port}` .* --port {port + 1}$",
        ),
        open_sockets(settings_in(tmp_path, server={"port": port}), {}),
    ):
        raise AssertionError("nothing is bound")
    assert not (tmp_path / "ingest.sock").exists()


def test_an_unknown_host_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match=r"^server.host = 'no such host': no such address"),
        open_sockets(settings_in(tmp_path, server={"host": "no such host"}), {}),
    ):
        raise AssertionError("nothing is bound")


def test_an_address_of_another_machine_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match=r"^cannot listen on 192\.0\.2\.1 port 0: Cannot assign requested address$"),
        open_sockets(settings_in(tmp_path, server={"host": "192.0.2.1"}), {}),
    ):
        raise AssertionError("nothing is bound")


def test_the_url_of_an_ipv6_address_has_brackets(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with open_sockets(settings_in(tmp_path, server={"host": "::1"}), {}) as sockets:
        assert sockets.url == f"http://[::1]:{sockets.tcp[0].getsockname()[1]}"
