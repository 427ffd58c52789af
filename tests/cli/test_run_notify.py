"""`progressd run` with programs that speak sd_notify."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from support.cli import program
from support.serving import ServedDaemon

NOTIFY = shutil.which("systemd-notify")
needs_systemd_notify = pytest.mark.skipif(NOTIFY is None, reason="systemd-notify is not installed")


def run(daemon: ServedDaemon, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return program("run", "--url", daemon.url, "--", "sh", "-c", script, **environ)


def newest(daemon: ServedDaemon) -> dict[str, object]:
    job: dict[str, object] = daemon.request("GET", "/api/jobs?limit=1").json()["jobs"][0]
    return job


@needs_systemd_notify
def test_systemd_notify_moves_the_bar_of_a_command(daemon: ServedDaemon) -> None:
    done = run(daemon, "systemd-notify --ready; systemd-notify --status='3/12 Upscaling'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    progress = newest(daemon)["progress"]
    assert isinstance(progress, dict)
    assert (progress["current_step"], progress["total_steps"], progress["step_name"]) == (3, 12, "Upscaling")


@needs_systemd_notify
def test_errno_is_the_error_of_a_failed_command(daemon: ServedDaemon) -> None:
    assert run(daemon, "systemd-notify ERRNO=28; exit 3").returncode == 3
    assert newest(daemon)["error"] == "sh: No space left on device"
    assert run(daemon, "systemd-notify ERRNO=28").returncode == 0
    assert newest(daemon)["status"] == "completed"


def test_the_socket_of_a_service_is_passed_on(daemon: ServedDaemon, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(f"{tmp_path}/s")
        done = run(daemon, "echo $NOTIFY_SOCKET", NOTIFY_SOCKET=f"{tmp_path}/s")
    assert done.stdout == f"{tmp_path}/s\n"


def test_without_a_directory_the_command_runs(daemon: ServedDaemon, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    done = run(daemon, "echo ${NOTIFY_SOCKET-none}", TMPDIR=str(deep))
    assert (done.stdout, done.stderr) == ("none\n", "")
    assert list(deep.iterdir()) == []
