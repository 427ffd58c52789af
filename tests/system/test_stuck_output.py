"""A daemon whose output is not read, or cannot be written."""

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from support.daemon import completed, progress, registered
from support.samples import job_id
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE

JOBS = 527  # with three log lines each, more than a pipe holds


@pytest.fixture(params=["pipe", "terminal"])
def unread(request: pytest.FixtureRequest) -> Iterator[IO[str]]:
    """A pipe without a reader, or a terminal after Ctrl-S."""
    reader, writer = os.pipe() if request.param == "pipe" else pty.openpty()
    if request.param == "pipe":
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    else:
        termios.tcflow(writer, termios.TCOOFF)
    with open(reader, "rb"), open(writer, "w") as stream:
        yield stream


def finish_jobs(daemon: ServedDaemon) -> None:
    """Report whole jobs, and read all answers."""
    lines = [
        json.dumps({"ref": 1, **event})
        for n in range(JOBS)
        for event in (registered(job_id(n)), progress(job_id(n), 1), completed(job_id(n)))
    ]
    with socket.socket(socket.AF_UNIX) as producer:
        producer.settimeout(PATIENCE)
        producer.connect(str(daemon.state_dir / "ingest.sock"))
        with producer.makefile("rw") as stream:
            stream.write("\n".join([*lines, ""]))
            stream.flush()
            assert all(json.loads(stream.readline())["ok"] for _ in lines)


def test_an_unread_stderr_blocks_nothing(tmp_path: Path, unread: IO[str]) -> None:
    with served_daemon(tmp_path / "state", log=unread) as daemon:
        try:
            finish_jobs(daemon)
            assert daemon.request("GET", "/api/health").status_code == 200
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(PATIENCE) == 0
        finally:
            daemon.process.kill()


def serve(state_dir: Path, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "progressd", "serve", "--port", "0", "--state-dir", str(state_dir)]
    return subprocess.Popen(command, text=True, **streams)


def test_an_unread_stdout_blocks_nothing(tmp_path: Path, unread: IO[str]) -> None:
    if not unread.isatty():  # fill the pipe
        os.set_blocking(unread.fileno(), False)
        unread.write("x" * 4096)
        unread.flush()
        os.set_blocking(unread.fileno(), True)
    with serve(tmp_path / "state", stdout=unread, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            while "message=ready" not in (line := process.stderr.readline()):
                assert line
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_a_stdout_on_a_full_disk_is_logged(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, serve(tmp_path / "state", stdout=full, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while "cannot print the address" not in (line := process.stderr.readline()):
            assert line
        assert "No space left on device" in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_the_daemon_starts_without_stderr(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m progressd serve --port 0 --state-dir {tmp_path}/state 2>&-"
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
