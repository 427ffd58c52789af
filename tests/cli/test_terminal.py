"""A daemon in a terminal that is closed stops in order, although it cannot write any more."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from support.serving import served_daemon
from support.submitting import PDF
from support.waiting import PATIENCE, until

CONFIG = '''
[pipelines.gated]
command = ["sh", "-c", """
    touch "$DIR/runs"
    until [ -e "$DIR/go" ]; do sleep 0.01; done
    cp "$0" "$1"
""", "{input}", "{output}"]
environment = { DIR = "DIRECTORY" }
'''


class Terminal:
    """The terminal of a daemon, whose output is read up to its address."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master: int | None = master
        said = b""
        while b"listening on " not in said or not said.endswith(b"\n"):
            said += os.read(master, 1000)
        self.url = said.partition(b"listening on ")[2].split()[0].decode()

    def close(self) -> None:
        """Close the window."""
        if self._master is not None:
            os.close(self._master)
            self._master = None

    def request(self, method: str, path: str, **what: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=PATIENCE, trust_env=False, verify=False, **what)


@contextmanager
def daemon_in_a_terminal(directory: Path, *before: str) -> Iterator[Terminal]:
    (directory / "config.toml").write_text(CONFIG.replace("DIRECTORY", str(directory)))
    arguments = ["--port", "0", "--state-dir", directory / "state", "--config", directory / "config.toml"]
    command = ["setsid", "--ctty", *before, sys.executable, "-m", "progressd", "serve", *arguments]
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        terminal = Terminal(process, master)
        try:
            yield terminal
        finally:
            (directory / "go").touch()
            if process.poll() is None:
                process.terminate()
            process.wait(PATIENCE)
            terminal.close()


def exported(directory: Path) -> Any:
    """Return the only job of a stopped daemon."""
    command = [sys.executable, "-m", "progressd", "jobs", "export", "--state-dir", directory / "state"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return json.loads(done.stdout)


def test_closing_the_terminal_stops_the_daemon(tmp_path: Path) -> None:
    with daemon_in_a_terminal(tmp_path) as terminal:
        terminal.request("POST", "/api/convert?pipeline=gated", files={"file": ("book.pdf", PDF)}).raise_for_status()
        until((tmp_path / "runs").exists)
        terminal.close()
        until(lambda: terminal.request("GET", "/api/health/ready").status_code == 503)
        (tmp_path / "go").touch()
        assert terminal.process.wait(PATIENCE) == 0
    job = exported(tmp_path)
    assert (job["status"], job["attempt"]) == ("completed", 1)


def test_a_daemon_under_nohup_continues(tmp_path: Path) -> None:
    with daemon_in_a_terminal(tmp_path, "sh", "-c", 'trap "" HUP; exec "$@"', "sh") as terminal:
        terminal.close()
        assert terminal.request("POST", "/api/jobs", json={"kind": "backup"}).status_code == 201
        terminal.process.terminate()
        assert terminal.process.wait(PATIENCE) == 0


def test_signals_that_the_daemon_was_started_to_ignore_reach_pipelines(tmp_path: Path) -> None:
    shown = "'grep -h SigIgn /proc/self/status $0 >$1; :', '{input}', '{output}'"
    config = f"[pipelines.show]\ncommand = ['sh', '-c', {shown}]\naccept = ['*/*']\n"
    prefix = ["sh", "-c", 'trap "" HUP QUIT USR1 USR2; exec "$@"', "sh"]
    with served_daemon(tmp_path / "state", config=config, prefix=prefix) as daemon:
        job = daemon.completed(daemon.submit("show"))
        assert daemon.request("GET", job["output_path"]).text == "SigIgn:\t0000000000000000\n"
