"""What progressd doctor finds, on sockets and directories that are as they should not be."""

import os
import socket
from pathlib import Path

from progressd.config import Pipeline, Settings
from progressd.diagnosis import OTHER_PORT, diagnose
from progressd.files import own_state_dir
from progressd.sockets import open_sockets

from daemon import settings_in


def found(settings: Settings, grade: str) -> list[str]:
    return [finding.sentence for finding in diagnose(settings) if finding.grade == grade]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_where_all_is_well_nothing_is_wrong(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "state", server={"port": free_port()})
    assert found(settings, "bad") == []
    assert f"the state directory {tmp_path / 'state'} can be written to" in found(settings, "good")
    assert list(tmp_path.iterdir()) == [], "it has changed something"


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [bad] = found(settings_in(tmp_path, server={"port": port}), "bad")
    assert bad.startswith(f"process {os.getpid()} (")
    assert bad.endswith(f") listens on port {port} of 127.0.0.1 already: {OTHER_PORT}")


def test_a_daemon_that_runs_is_seen(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, server={"port": free_port()})
    with own_state_dir(tmp_path), open_sockets(settings, {}):
        assert found(settings, "bad") == []
        assert f"a daemon runs, with the state directory {tmp_path}" in found(settings, "good")
        assert f"jobs can be reported at {tmp_path / 'ingest.sock'}" in found(settings, "good")


def test_a_daemon_that_nobody_reaches(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, server={"port": free_port()})
    with own_state_dir(tmp_path):
        assert found(settings, "bad") == [
            f"nobody listens on port {settings.server.port} of 127.0.0.1, though a daemon runs: "
            "if it was given another port, say so with --port",
            f"a daemon runs, but nobody listens at {tmp_path / 'ingest.sock'}",
        ]


def test_programs_that_are_missing(tmp_path: Path) -> None:
    settings = settings_in(
        tmp_path, server={"port": free_port()}, pipelines={"scan": Pipeline(("no-such-program", "{input}"))}
    )
    assert found(settings, "bad") == ["the pipeline scan runs no-such-program, which is not here"]


def test_too_few_descriptors(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, server={"port": free_port()}, limits={"max_connections": 10_000_000})
    assert any("limits.max_connections = 10000000, but" in note for note in found(settings, "note"))
