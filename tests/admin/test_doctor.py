"""progressd doctor, with real ports, sockets and directories."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from progressd.admin.doctor import diagnose
from progressd.app import started
from progressd.config.settings import Settings
from progressd.core.errors import SettingsError, leaves
from progressd.core.pipeline import Pipeline
from progressd.files.state_dir import own_state_dir
from progressd.net.bind import open_sockets
from support.daemon import settings_in
from support.growth import fill
from support.scarcity import small_disk


def found(settings: Settings, grade: str) -> list[str]:
    return [finding.sentence for finding in diagnose(settings) if finding.grade == grade]


def test_a_good_machine_has_no_problems(free_port: int, tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "state", server={"port": free_port})
    assert found(settings, "bad") == []
    assert f"the state directory {tmp_path / 'state'} is writable" in found(settings, "good")
    assert list(tmp_path.iterdir()) == [], "it has changed something"


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [bad] = found(settings_in(tmp_path, server={"port": port}), "bad")
    assert bad == (
        f"port {port} of 127.0.0.1 is in use: stop the process that `sudo ss -ltnp sport = :{port}` shows,"
        " or choose another port (server.port)"
    )


def test_a_running_daemon(free_port: int, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, server={"port": free_port})
    with own_state_dir(tmp_path), open_sockets(settings, {}):
        assert found(settings, "bad") == []
        assert f"a daemon is running with the state directory {tmp_path}" in found(settings, "good")
        assert f"jobs can be reported at {tmp_path / 'ingest.sock'}" in found(settings, "good")


def test_an_unreachable_daemon(free_port: int, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, server={"port": free_port})
    with own_state_dir(tmp_path):
        assert found(settings, "bad") == [
            f"nothing listens on port {settings.server.port} of 127.0.0.1, although a daemon is running: "
            "if it uses another port, name it with --port",
            f"a daemon is running, but nothing listens at {tmp_path / 'ingest.sock'}",
        ]


@pytest.mark.parametrize(
    ("server", "auth"),
    [
        ({"tls_key": "/no/key"}, {}),
        ({"tls_cert": "{}/text"}, {}),
        ({"tls_cert": "{}/none"}, {}),
        ({"host": "0.0.0.0"}, {}),
        ({}, {"keys_file": "{}/text"}),
        ({}, {"token_secret_file": "{}/text"}),
    ],
)
async def test_errors_of_a_start_are_found(
    free_port: int, tmp_path: Path, server: dict[str, str], auth: dict[str, str]
) -> None:
    (tmp_path / "text").write_text("Dear diary")
    inside = {key: text.format(tmp_path) for key, text in server.items()}
    files = {key: Path(text.format(tmp_path)) for key, text in auth.items()}
    settings = settings_in(tmp_path / "state", server={"port": free_port, **inside})
    settings = replace(settings, auth=replace(settings.auth, **files))
    bad = found(settings, "bad")
    with pytest.raises(Exception) as refused:  # noqa: PT011
        async with started(settings, {}) as (daemon, _):
            daemon._listener(daemon.tasks)
    assert bad == [str(leaf) for leaf in leaves(refused.value) if isinstance(leaf, SettingsError)]
    assert len(bad) == 1


def test_a_public_address_needs_keys(free_port: int, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, server={"port": free_port, "host": "0.0.0.0"}, auth={"required": True})
    assert found(settings, "bad") == []


def test_a_damaged_database(free_port: int, tmp_path: Path) -> None:
    fill(tmp_path / "progressd.db", 20)
    settings = settings_in(tmp_path, server={"port": free_port})
    assert found(settings, "bad") == []
    with (tmp_path / "progressd.db").open("r+b") as file:
        file.write(os.urandom(4096))
    [bad] = found(settings, "bad")
    assert bad.startswith(f"the database {tmp_path}/progressd.db is damaged or is not a database")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_a_database_of_another_owner(free_port: int, tmp_path: Path) -> None:
    fill(tmp_path / "progressd.db", 20)
    os.chown(tmp_path, 65534, 65534)
    path = tmp_path / "progressd.db"
    assert found(settings_in(tmp_path, server={"port": free_port}), "bad") == [
        f"{path} belongs to root, its directory to nobody: run sudo chown --reference={tmp_path} {path}"
    ]


def test_a_full_disk(free_port: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        settings = settings_in(disk.path, server={"port": free_port})
        assert found(settings, "bad") == []
        disk.fill()
        assert found(settings, "bad") == [f"cannot write to the disk of {disk.path}: no space left on device"]


def test_missing_programs(free_port: int, tmp_path: Path) -> None:
    settings = settings_in(
        tmp_path, server={"port": free_port}, pipelines={"scan": Pipeline(("no-such-program", "{input}"))}
    )
    assert found(settings, "bad") == ["the pipeline scan runs no-such-program, which is not installed"]


def test_a_missing_sqlite3(free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    settings = settings_in(tmp_path, server={"port": free_port})
    assert "progressd check --repair needs sqlite3: sudo apt install sqlite3" in found(settings, "note")


@pytest.mark.parametrize("section", ["limits", "ingest"])
def test_too_few_descriptors(free_port: int, tmp_path: Path, section: str) -> None:
    given: Any = {section: {"max_connections": 10_000_000}}
    settings = settings_in(tmp_path, server={"port": free_port}, **given)
    assert any(f"{section}.max_connections = 10000000" in note for note in found(settings, "note"))
