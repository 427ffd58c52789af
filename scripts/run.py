"""`make run`: start the daemon, convert the bundled scan, and serve until Ctrl-C.

The arguments go to `progressd serve`. The exit status is 0 after Ctrl-C, otherwise the daemon's.
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
Pass flags of the daemon like this: make run ARGS="--port 8081 --state-dir other-data"
Two daemons need different ports and different state directories."""


def main() -> int:
    """Run everything and return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    # More log would break the progress bars; `make run ARGS="--log-level info"` shows it.
    command = [PROGRESSD, "serve", "--log-level", "warning", *sys.argv[1:]]
    # Its own process group: `stop` passes Ctrl-C on once, because a second Ctrl-C would end the drain.
    with alone_on_terminal(), subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as daemon:
        try:
            url = wait_listening(daemon)
            if url is not None:
                show(url)
            elif daemon.wait() != 0:
                print(HINT, file=sys.stderr)
            return ended(daemon)
        except (KeyboardInterrupt, OSError):  # OSError: the terminal was closed
            with suppress(OSError):
                print("\nStopping. Press Ctrl-C again to stop running jobs.", flush=True)
            return stop(daemon)


def wait_listening(daemon: subprocess.Popen[str]) -> str | None:
    """Return the URL of the daemon, or None if it printed an error and did not start."""
    assert daemon.stdout is not None
    for line in daemon.stdout:
        if line.startswith(LISTENING):
            return line.removeprefix(LISTENING).strip()
        print(line, end="", flush=True)  # such as the help
    return None


def show(url: str) -> None:
    """Convert the scan and print the URLs."""
    print(f"The daemon is running. Page: {url}/\nConverting {SCAN.name}:", flush=True)
    submit = [PROGRESSD, "submit", str(SCAN), "--option", "dpi=600", "--option", "advanced=true", "--url", url]
    job_id = subprocess.run(submit, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    if not job_id:
        return  # `submit` has printed the error
    status = subprocess.run([PROGRESSD, "watch", job_id, "--url", url], check=False).returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    print(f"\nThe page:    {url}/")
    if status == 0:
        print(f"The result:  {url}/api/jobs/{job_id}/download")
    print("Ctrl-C stops the daemon.", flush=True)


def ended(daemon: subprocess.Popen[str]) -> int:
    """Wait until the daemon ends by itself, and return its exit status as a shell would."""
    status = daemon.wait()
    if status < 0:
        print(f"The daemon was ended by {signal.Signals(-status).name}.", file=sys.stderr)
    return status if status >= 0 else 128 - status


def stop(daemon: subprocess.Popen[str]) -> int:
    """Stop the daemon and return its exit status."""
    while True:
        daemon.send_signal(signal.SIGTERM)
        try:
            return daemon.wait()
        except KeyboardInterrupt:
            continue


@contextmanager
def alone_on_terminal() -> Iterator[None]:
    """Send Ctrl-C to this process and its children, but not to `make`, which would report an error."""
    if not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp() or os.getpgrp() == os.getpid():
        yield
        return
    before = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z would leave the shell waiting for `make`
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        with suppress(OSError):  # the terminal was closed
            os.tcsetpgrp(0, before)


if __name__ == "__main__":
    sys.exit(main())
