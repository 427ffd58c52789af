"""The servers, started as their users would start them, but on one core."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.install import BUILT, NODE_MODULES, PEERS, PYTHON

CORE: Final = 0  # of the server; the load client has the next one
FILES: Final = 20_000  # descriptors, for 10,000 connections on either side
START_SECONDS: Final = 60.0  # a daemon with a million jobs starts slowly
STOP_SECONDS: Final = 5.0


class ServerFailed(Exception):
    """A server did not start."""


class Place(NamedTuple):
    """The port and directories of a server."""

    port: int
    directory: Path
    state: Path  # of a daemon that keeps state

    @property
    def socket(self) -> Path:
        """The Unix socket for producers."""
        return self.directory / "ingest.sock"

    @property
    def log(self) -> Path:
        """The log of the server."""
        return self.directory / "log"

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-300:].strip()


class Running(NamedTuple):
    """A running server and all its processes."""

    place: Place
    pids: Sequence[int]

    def kill(self) -> None:
        """Kill all processes."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Server:
    """A server to measure. `{id}` in a path stands for a job's id."""

    name: str
    title: str
    command: Callable[[Place], Sequence[str | Path]]
    environ: Callable[[Place], Mapping[str, str]] = field(default=lambda place: {})
    publish: str = ""  # path to which events are POSTed; "": the Unix socket
    publish_all: str = ""  # the same if watchers watch all jobs
    is_progressd: bool = False  # jobs are registered, and watchers first receive the current state


def progressd(python: str | Path, name: str = "progressd") -> Server:
    """Return the daemon that this Python has installed."""

    def command(place: Place) -> Sequence[str | Path]:
        serve = (python, "-m", "progressd", "serve")
        return (*serve, "--port", str(place.port), "--state-dir", place.state, "--log-level", "warning")

    return Server(name, name, command, _progressd_environ, is_progressd=True)


def _progressd_environ(place: Place) -> Mapping[str, str]:
    return {
        "PROGRESSD_LIMITS_MAX_CONNECTIONS": str(FILES),
        "PROGRESSD_LIMITS_MAX_CONNECTIONS_PER_ADDRESS": str(FILES),
        "PROGRESSD_LIMITS_MAX_HANDSHAKES": str(FILES),
        "PROGRESSD_INGEST_SOCKET": str(place.socket),
        "PROGRESSD_STORE_RETENTION": "36500d",  # the store of finished jobs is reused for a long time
    }


def _nchan(place: Place) -> Sequence[str | Path]:
    text = (PEERS / "nginx.conf").read_text()
    for word, value in (("DIRECTORY", place.directory), ("PORT", place.port), ("FILES", FILES)):
        text = text.replace(word, str(value))
    file = place.directory / "nginx.conf"
    file.write_text(text)
    return ("nginx", "-p", place.directory, "-c", file)


SERVERS: Final = {
    server.name: server
    for server in (
        progressd(sys.executable),
        Server("nchan", "Nchan on nginx", _nchan, publish="/publish/jobs/{id}", publish_all="/publish/jobs"),
        Server(
            "websockets",
            "websockets, `broadcast()`",
            lambda place: (PYTHON, PEERS / "websockets_server.py", str(place.port), place.socket),
        ),
        Server(
            "starlette",
            "Starlette on uvicorn",
            lambda place: (
                *(PYTHON, "-m", "uvicorn", "--app-dir", PEERS, "starlette_server:app"),
                *("--port", str(place.port), "--log-level", "warning", "--no-access-log"),
            ),
            lambda place: {"EVENTS": str(place.socket)},
        ),
        Server(
            "ws",
            "Node's `ws`",
            lambda place: ("node", PEERS / "ws_server.js", str(place.port), place.socket),
            lambda place: {"NODE_PATH": str(NODE_MODULES)},
        ),
        Server(
            "trio-websocket",
            "trio-websocket, one task per connection",
            lambda place: (sys.executable, PEERS / "trio_server.py", str(place.port), place.socket),
        ),
        Server("floor", "bare `send()`", lambda place: (BUILT / "floor", str(place.port), place.socket)),
    )
}


@contextlib.contextmanager
def running(server: Server, environ: Mapping[str, str], state: Path | None = None) -> Iterator[Running]:
    """Start a server, and stop it at the end. Raises ServerFailed if it does not answer within a minute.

    `state`: a state directory to use, instead of an empty one.
    """
    # /tmp may be in memory, where commits cost less.
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/var/tmp"))
    directory.chmod(0o755)  # for nginx's worker, which is not root
    place = Place(_free_port(), directory, state or directory / "state")
    with place.log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", str(CORE), *server.command(place)],
            env={**_own_environ(), **server.environ(place), **environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_up(server, place, process)
        yield Running(place, _processes_of_group(process.pid))
    finally:
        _stop(process)
        shutil.rmtree(directory)


def _own_environ() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PROGRESSD_")}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert isinstance(port, int)
        return port


def _wait_until_up(server: Server, place: Place, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", place.port), 1):
            if server.publish or place.socket.exists():
                return
        time.sleep(0.05)
    raise ServerFailed(f"{server.name} did not start: {place.log_tail()}")


def _processes_of_group(group: int) -> list[int]:
    """Return all processes of the group, such as nginx's worker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if int(entry.read_text(errors="replace").rpartition(")")[2].split()[2]) == group:
                found.append(int(entry.parent.name))
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server with SIGTERM, then kill its process group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
