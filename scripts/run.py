"""`make run`: starts the daemon, converts the bundled scan under everyone's eyes, and serves until Ctrl-C.

The arguments go to `progressd serve`. Exit status 0 after Ctrl-C, else the daemon's own.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SCAN: Final = next((ROOT / "daemon/progressd_pdf/scan").glob("*.pdf"))
PROGRESSD: Final = str(Path(sys.executable).with_name("progressd"))
LISTENING: Final = "listening on "
INTERRUPTED: Final = 130
HINT: Final = """\
Flags of the daemon go to make like this: make run ARGS="--port 8081 --state-dir other-data"
Two daemons at once need both: a port and a state directory of their own."""


def main() -> int:
    """Run everything; the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    # Its log would tear the bars apart, so only warnings; `make run ARGS="--log-level info"` shows it all.
    command = [PROGRESSD, "serve", "--log-level", "warning", *sys.argv[1:]]
    # A group of its own: Ctrl-C is passed on by `stop`, once, for a second one would cut the daemon's drain short.
    with alone_on_terminal(), subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as daemon:
        try:
            url = wait_listening(daemon)
            if url is not None:
                show(url)
            elif daemon.wait() != 0:
                print(HINT, file=sys.stderr)
            return daemon.wait()
        except (KeyboardInterrupt, OSError):  # OSError: the terminal has gone, which is told by SIGHUP as well
            with suppress(OSError):
                print("\nStopping; Ctrl-C once more does not wait for running jobs.", flush=True)
            return stop(daemon)


def wait_listening(daemon: subprocess.Popen[str]) -> str | None:
    """Where the daemon answers; None when it could not start, and has said why."""
    assert daemon.stdout is not None
    for line in daemon.stdout:
        if line.startswith(LISTENING):
            return line.removeprefix(LISTENING).strip()
        print(line, end="", flush=True)  # the help, say
    return None


def show(url: str) -> None:
    """Convert the scan and say where everything is."""
    print(f"The daemon is up; its page: {url}/\nConverting {SCAN.name}:", flush=True)
    submit = [PROGRESSD, "submit", str(SCAN), "--option", "dpi=600", "--option", "advanced=true", "--url", url]
    job_id = subprocess.run(submit, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    if not job_id:
        return  # refused, and `submit` has said why
    status = subprocess.run([PROGRESSD, "watch", job_id, "--url", url], check=False).returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    print(f"\nThe page:    {url}/")
    if status == 0:
        print(f"The result:  {url}/api/jobs/{job_id}/download")
    print("Ctrl-C stops the daemon.", flush=True)


def stop(daemon: subprocess.Popen[str]) -> int:
    """Have the daemon drain and wait for its end; its exit status."""
    while True:
        daemon.send_signal(signal.SIGTERM)
        try:
            return daemon.wait()
        except KeyboardInterrupt:
            continue


@contextmanager
def alone_on_terminal() -> Iterator[None]:
    """Make Ctrl-C reach this process and its children, but not the `make` above it, which would call it an error."""
    if not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp() or os.getpgrp() == os.getpid():
        yield
        return
    before = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # stopped, this group would leave the shell waiting for `make`
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        with suppress(OSError):  # a terminal that has gone
            os.tcsetpgrp(0, before)


if __name__ == "__main__":
    sys.exit(main())
