"""`make run` on its own terminal."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from support.serving import PATIENCE
from support.terminal import Terminal, in_terminal
from support.waiting import until

SCRIPT = Path(__file__).parent.parent / "scripts" / "run.py"
CONFIG = """
[pipelines.pdf]
command = ["cp", "{input}", "{output}"]
"""


@contextmanager
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """Run the script in a shell that leads a session, as make does; give the shell and its terminal."""
    (tmp_path / "config.toml").write_text(CONFIG)
    flags = f"--port 0 --state-dir {tmp_path}/state --config {tmp_path}/config.toml"
    with in_terminal(["sh", "-c", f"{sys.executable} {SCRIPT} {flags}; exit $?"]) as (shell, terminal):
        yield shell, terminal


def url_in(shown: bytes) -> str:
    found = re.search(rb"http://[0-9.:]+", shown)
    assert found is not None
    return found[0].decode()


def test_it_converts_the_scan_until_ctrl_c(tmp_path: Path) -> None:
    with started(tmp_path) as (shell, terminal):
        shown = terminal.read(b"Ctrl-C stops the daemon.")
        assert b"The result:  http://" in shown
        assert httpx.get(f"{url_in(shown)}/api/health", timeout=PATIENCE, trust_env=False, verify=False).is_success
        terminal.type(b"\x03")
        assert shell.wait(PATIENCE) == 0


def test_closing_the_terminal_stops_the_daemon(tmp_path: Path) -> None:
    with started(tmp_path) as (_, terminal):
        url = url_in(terminal.read(b"The daemon is running.*\n"))
        terminal.close()

    def gone() -> bool:
        try:
            httpx.get(f"{url}/api/health", timeout=PATIENCE, trust_env=False, verify=False)
        except httpx.TransportError:
            return True
        return False

    until(gone)
