"""`make run` on its own terminal."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

import httpx
from support.serving import PATIENCE
from support.waiting import until

SCRIPT = Path(__file__).parent.parent / "scripts" / "run.py"
CONFIG = """
[pipelines.pdf]
command = ["cp", "{input}", "{output}"]
"""


@contextmanager
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the script in a shell that leads a session, as make does; give the shell and its terminal."""
    (tmp_path / "config.toml").write_text(CONFIG)
    flags = f"--port 0 --state-dir {tmp_path}/state --config {tmp_path}/config.toml"
    far, near = pty.openpty()
    with subprocess.Popen(
        ["sh", "-c", f"{sys.executable} {SCRIPT} {flags}; exit $?"],
        stdin=near,
        stdout=near,
        stderr=near,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(near, termios.TIOCSCTTY, 0),
    ) as shell:
        os.close(near)
        try:
            yield shell, far
        except BaseException:
            os.killpg(shell.pid, signal.SIGKILL)
            raise


def read_until(terminal: int, sentence: str) -> str:
    """Return the output up to a sentence."""
    shown = ""
    while sentence not in shown:
        assert select([terminal], [], [], PATIENCE)[0], shown
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def url_in(shown: str) -> str:
    found = re.search(r"http://[0-9.:]+", shown)
    assert found is not None
    return found[0]


def test_it_converts_the_scan_until_ctrl_c(tmp_path: Path) -> None:
    with started(tmp_path) as (shell, terminal):
        shown = read_until(terminal, "Ctrl-C stops the daemon.")
        assert "The result:  http://" in shown
        assert httpx.get(f"{url_in(shown)}/api/health", timeout=PATIENCE, trust_env=False, verify=False).is_success
        os.write(terminal, b"\x03")
        assert shell.wait(PATIENCE) == 0
        os.close(terminal)


def test_closing_the_terminal_stops_the_daemon(tmp_path: Path) -> None:
    with started(tmp_path) as (_, terminal):
        url = url_in(read_until(terminal, "The daemon is running"))
        os.close(terminal)

    def gone() -> bool:
        try:
            httpx.get(f"{url}/api/health", timeout=PATIENCE, trust_env=False, verify=False)
        except httpx.TransportError:
            return True
        return False

    until(gone)
