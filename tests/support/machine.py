"""A machine with a real systemd as PID 1 in its own namespaces; tests/systemd/boot describes it.

    machine.run("systemctl", "start", "progressd.socket")
    machine.request("GET", "/api/health").json

Its files are below `root`. It has its own network: connect with `tcp_socket` and `connect`.
"""

import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.peer import Response
from support.waiting import until

PROJECT = Path(__file__).parents[2]
BOOT = PROJECT / "tests" / "systemd" / "boot"
FORBIDDEN = 77  # exit status without permission for namespaces
PATIENCE = 60.0  # seconds for each wait
PORT = 8080
CLONE_NEWNET = 0x40000000  # setns(2)


class CannotBoot(Exception):
    """The machine cannot start here."""


class Machine:
    """A machine. `init` is the id of its PID 1 outside, and `root` its root directory."""

    def __init__(self, init: int) -> None:
        self.init = init
        self.root = Path(f"/proc/{init}/root")

    def run(self, *command: str, check: bool = True, text: str | None = None) -> str:
        """Run a command as root, and return its output. Fails unless its exit status is 0."""
        done = self.completed(*command, text=text)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def completed(self, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as root, with any exit status."""
        return subprocess.run(self.inside(*command), input=text or "", capture_output=True, text=True, check=False)

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs a command in the machine, with a timeout."""
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=/root"]
        limit = ["timeout", "--kill-after", "5", str(PATIENCE)]
        return ["nsenter", "-t", str(self.init), "-a", "--", *clean, *limit, *command]

    def write(self, path: str, text: str) -> None:
        """Write a file of the machine."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def state(self, unit: str) -> dict[str, str]:
        """Return the properties of a unit."""
        return dict(line.split("=", 1) for line in self.run("systemctl", "show", unit).splitlines() if "=" in line)

    def log(self, unit: str, *options: str) -> str:
        """Return the messages of a unit in the journal."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--unit", unit, "--output", "cat", *options)

    def eventually(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds."""
        until(condition, PATIENCE)

    def tcp_socket(self) -> socket.socket:
        """Return a TCP socket in the machine's network."""
        made: list[socket.socket] = []

        def make() -> None:  # in a thread, because setns changes only the network of its thread
            with open(f"/proc/{self.init}/ns/net") as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def connect(self, port: int = PORT, local: str = "") -> socket.socket:
        """Connect to a port of the machine, from the address `local`."""
        sock = self.tcp_socket()
        sock.bind((local, 0))
        return _connected(sock, ("127.0.0.1", port))

    def connect_unix(self, path: str = "/run/progressd/ingest.sock") -> socket.socket:
        """Connect to a Unix socket of the machine."""
        return _connected(socket.socket(socket.AF_UNIX), str(self.root / path.lstrip("/")))

    def request(self, method: str, path: str, body: bytes | None = None, port: int = PORT, **headers: str) -> Response:
        """Send an HTTP request; underscores in header names become dashes."""
        client = http.client.HTTPConnection("127.0.0.1", port)
        client.sock = self.connect(port)
        try:
            client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = client.getresponse()
            return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            client.close()

    def report(self, event: dict[str, Any], path: str = "/run/progressd/ingest.sock") -> Any:
        """Report an event as a producer, and return the answer."""
        with self.connect_unix(path) as producer, producer.makefile("rw") as stream:
            stream.write(json.dumps({"ref": 1, **event}) + "\n")
            stream.flush()
            return json.loads(stream.readline())


def _connected(sock: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def booted() -> Iterator[Machine]:
    """Boot a machine. Raises CannotBoot without permission for namespaces."""
    packages = sysconfig.get_path("purelib")
    command = [str(BOOT), str(PROJECT), sys.base_prefix, packages]
    if missing := [tool for tool in ("systemctl", "nsenter", "setpriv", "ip") if not shutil.which(tool)]:
        raise CannotBoot(f"{', '.join(missing)} missing: scripts/system-packages.sh installs it")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            machine = Machine(_init(process))
            up = machine.run("systemctl", "is-system-running", "--wait", check=False).strip()
            assert up in ("running", "degraded"), f"systemd is {up}"
            yield machine
        finally:
            process.send_signal(signal.SIGKILL)


def _init(process: subprocess.Popen[str]) -> int:
    """Wait until systemd is ready, and return its process id."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def is_up() -> bool:
        if (status := process.poll()) is not None:
            assert process.stderr is not None
            raise (CannotBoot if status == FORBIDDEN else AssertionError)(process.stderr.read().strip())
        with suppress(IndexError, FileNotFoundError):
            return os.path.exists(f"/proc/{children.read_text().split()[0]}/root/run/systemd/private")
        return False

    until(is_up, PATIENCE)
    return int(children.read_text().split()[0])
