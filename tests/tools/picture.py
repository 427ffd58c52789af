"""Take the picture of `progressd watch` in docs/: `cd tests && python -m tools.picture`. It needs tmux and Chromium."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from support.serving import ServedDaemon, served_daemon
from support.waiting import until
from tools.programs import ENVIRONMENT, WHEEL, big, files, python_tests, shell, slow_server, wheel

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "watch.png"
COLUMNS, LINES = 120, 12
AT_LEAST = 8  # % of each program
COMMANDS = [
    "rsync -a --bwlimit=400 tree/ copy",
    "dd if=/dev/zero of=copied bs=100 count=20000 oflag=dsync status=progress",
    "curl -o page {url}/file",
    "pv -L 500k -o passed big",
    "pip download --no-deps --no-cache-dir {url}/" + WHEEL,
    "pytest -v -p no:cacheprovider test_a.py",
    "ffmpeg -y -hide_banner -re -i in.mp4 out.mp4",
    "rclone copy --bwlimit 400k --config rclone.conf tree cloud",
]
FRAME = """<!doctype html><meta charset="utf-8"><style>
html, body {{ margin: 0; background: #0c0c0c }}
pre {{ margin: 0; padding: 14px; color: #d9d9d9; font: 14px/1.4 "DejaVu Sans Mono", monospace }}
{stylesheet}</style><pre>{code}</pre>"""


def main() -> None:
    """Run the programs and a watcher, and write the picture."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as running:
        directory = Path(temporary)
        files(directory, 20)
        big(directory)
        wheel(directory)
        python_tests(directory)
        (directory / "test_a.py").write_text((directory / "test_a.py").read_text().replace("0.01", "0.3"))
        film = "ffmpeg -v error -f lavfi -i testsrc=duration=60:size=160x120:rate=25 in.mp4"
        shell(film)(directory)
        daemon = running.enter_context(served_daemon(directory / "state"))
        url = running.enter_context(slow_server(directory, 50))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, **ENVIRONMENT, "PATH": path, "HOME": temporary, "PROGRESSD_URL": daemon.url}
        tmux = ["tmux", "-f", "/dev/null", "-S", f"{directory}/tmux"]
        session = ["new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "progressd watch"]
        subprocess.run([*tmux, *session], env=environment, check=True)
        running.callback(subprocess.run, [*tmux, "kill-server"], check=False)
        for command in COMMANDS:
            window = ["new-window", "-d", "-c", temporary, f"progressd run -- {command.replace('{url}', url)}"]
            subprocess.run([*tmux, *window], env=environment, check=True)
        with contextlib.suppress(AssertionError):  # a busy machine shows less
            until(lambda: all_above(daemon), 60)
        captured = subprocess.run([*tmux, "capture-pane", "-ep"], capture_output=True, text=True, check=True).stdout
        draw(captured.rstrip("\n"), directory)


def all_above(daemon: ServedDaemon) -> bool:
    """Return whether every job has come far enough to be seen, or one has ended."""
    jobs = daemon.request("GET", "/api/jobs").json()["jobs"]
    percents = [job["progress"]["percent"] for job in jobs]
    return len(jobs) == len(COMMANDS) and (min(percents) >= AT_LEAST or max(percents) >= 95)


def draw(captured: str, directory: Path) -> None:
    """Draw what a terminal shows."""
    console = Console(record=True, width=COLUMNS, file=(directory / "discarded").open("w"), force_terminal=True)
    console.print(Text.from_ansi(captured), soft_wrap=True)
    html = directory / "watch.html"
    html.write_text(console.export_html(theme=MONOKAI, code_format=FRAME))
    lines = captured.count("\n") + 1
    size = f"--window-size={round(COLUMNS * 8.43) + 28},{round(lines * 19.6) + 28}"
    options = ["--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2", size]
    command = ["chromium-headless-shell", *options, f"--screenshot={PICTURE}", html.as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    print(captured)


if __name__ == "__main__":
    main()
