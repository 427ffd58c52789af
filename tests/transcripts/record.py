"""Record what a tool writes: `python record.py NAME [--pty] -- COMMAND…` writes NAME.typescript and NAME.timing.

The timing has the advanced format of script(1): the stream, the seconds since the line before, and the bytes. The
streams are O (standard output, or the terminal), E (standard error) and P (the descriptor that a preset asks for).
"""

import contextlib
import fcntl
import os
import pty
import selectors
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from progressd.detect.plan import plan
from progressd.detect.preset_loader import Presets

COLUMNS = int(os.environ.get("COLUMNS", "120"))


def record(name: str, terminal: bool, command: list[str]) -> int:
    """Run the command as the plan says, and record its output. Return its exit status."""
    planned = plan(command, Presets(), terminal=terminal)
    reading, writing = os.pipe()
    streams: dict[int, str] = {reading: "P"}
    pass_fds = [writing] if planned.progress_fd else []
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", **planned.environment}
    if terminal:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        streams[ours] = "O"

        def controlling() -> None:
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            planned.arguments(writing), stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            pass_fds=pass_fds, preexec_fn=controlling,
        )  # fmt: skip
        os.close(theirs)
    else:
        process = subprocess.Popen(
            planned.arguments(writing), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, pass_fds=pass_fds,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        streams |= {process.stdout.fileno(): "O", process.stderr.fileno(): "E"}
    os.close(writing)
    typescript, timing = bytearray(), list[str]()
    selector = selectors.DefaultSelector()
    for descriptor in streams:
        selector.register(descriptor, selectors.EVENT_READ)
    before = time.monotonic()
    while selector.get_map():
        for key, _ in selector.select():
            chunk = b""
            with contextlib.suppress(OSError):  # the terminal was closed
                chunk = os.read(key.fd, 4096)
            if not chunk:
                selector.unregister(key.fd)
                continue
            now = time.monotonic()
            timing.append(f"{streams[key.fd]} {now - before:.6f} {len(chunk)}\n")
            typescript += chunk
            before = now
    here = Path(__file__).parent
    (here / f"{name}.typescript").write_bytes(typescript)
    (here / f"{name}.timing").write_text("".join(timing))
    print(name, len(typescript), "bytes", len(timing), "chunks", planned.added)
    return process.wait()


if __name__ == "__main__":
    split = sys.argv.index("--")
    sys.exit(record(sys.argv[1], "--pty" in sys.argv[2:split], sys.argv[split + 1 :]))
