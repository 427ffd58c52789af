"""A daemon in a terminal that is closed stops in order, although it cannot write any more."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.cli import PROGRESSD, program
from support.serving import ServedDaemon, served_daemon
from support.submitting import PDF
from support.terminal import Terminal, in_terminal
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


@contextmanager
def daemon_in_a_terminal(directory: Path, *before: str) -> Iterator[tuple[ServedDaemon, Terminal]]:
    config, state_dir = directory / "config.toml", directory / "state"
    config.write_text(CONFIG.replace("DIRECTORY", str(directory)))
    arguments = ["--port", "0", "--state-dir", str(state_dir), "--config", str(config)]
    with in_terminal([*before, *PROGRESSD, "serve", *arguments]) as (process, terminal):
        url = terminal.read(rb"listening on \S+\r\n").partition(b"listening on ")[2].split()[0].decode()
        try:
            yield ServedDaemon(url, process, state_dir), terminal
        finally:
            (directory / "go").touch()


def exported(directory: Path) -> Any:
    """Return the only job of a stopped daemon."""
    return json.loads(program("jobs", "export", "--state-dir", directory / "state").stdout)


def test_closing_the_terminal_stops_the_daemon(tmp_path: Path) -> None:
    with daemon_in_a_terminal(tmp_path) as (daemon, terminal):
        daemon.request("POST", "/api/convert?pipeline=gated", files={"file": ("book.pdf", PDF)}).raise_for_status()
        until((tmp_path / "runs").exists)
        terminal.close()
        until(lambda: daemon.request("GET", "/api/health/ready").status_code == 503)
        (tmp_path / "go").touch()
        assert daemon.process.wait(PATIENCE) == 0
    job = exported(tmp_path)
    assert (job["status"], job["attempt"]) == ("completed", 1)


def test_a_daemon_under_nohup_continues(tmp_path: Path) -> None:
    with daemon_in_a_terminal(tmp_path, "sh", "-c", 'trap "" HUP; exec "$@"', "sh") as (daemon, terminal):
        terminal.close()
        assert daemon.request("POST", "/api/jobs", json={"kind": "backup"}).status_code == 201
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE) == 0


def test_signals_that_the_daemon_ignores_reach_pipelines(tmp_path: Path) -> None:
    shown = "'grep -h SigIgn /proc/self/status $0 >$1; :', '{input}', '{output}'"
    config = f"[pipelines.show]\ncommand = ['sh', '-c', {shown}]\naccept = ['*/*']\n"
    prefix = ["sh", "-c", 'trap "" HUP QUIT USR1 USR2; exec "$@"', "sh"]
    with served_daemon(tmp_path / "state", config=config, prefix=prefix) as daemon:
        job = daemon.completed(daemon.submit("show"))
        assert daemon.request("GET", job["output_path"]).text == "SigIgn:\t0000000000000000\n"
