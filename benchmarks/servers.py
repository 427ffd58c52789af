"""The servers: how each is started, as its own users would run it, pinned to one core; and how it is stopped."""

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

from benchmarks.paths import BUILT, NODE_MODULES, PEERS, PYTHON

CORE: Final = 0  # of the server; the load client has the next one
FILES: Final = 20_000  # descriptors, for 10,000 connections on either side
START_SECONDS: Final = 60.0  # a server with a million jobs may take its time
STOP_SECONDS: Final = 5.0


class ServerFailed(Exception):
    """A server did not come up."""


class Place(NamedTuple):
    """What a server is given to run in."""

    port: int
    directory: Path
    state: Path  # of a daemon that keeps state

    @property
    def socket(self) -> Path:
        """Where producers write lines."""
        return self.directory / "ingest.sock"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.directory / "log"

    def last_words(self) -> str:
        """The end of what the server said."""
        return self.log.read_text(errors="replace")[-300:].strip()


class Running(NamedTuple):
    """A server that answers. `pids`: all its processes."""

    place: Place
    pids: Sequence[int]


@dataclass(frozen=True)
class Server:
    """A server under test. `command` is how it is started; {id} in a path stands for a job's id."""

    name: str
    title: str
    command: Callable[[Place], Sequence[str | Path]]
    environ: Callable[[Place], Mapping[str, str]] = field(default=lambda place: {})
    publish: str = ""  # path that events are POSTed to; "": they are written to the Unix socket
    publish_all: str = ""  # the same where every watcher watches all jobs
    snapshot: bool = False  # a watcher is greeted with what it missed; and messages are longer than events


def _progressd(place: Place) -> Sequence[str | Path]:
    command = Path(sys.executable).with_name("progressd")
    return (command, "serve", "--port", str(place.port), "--state-dir", place.state, "--log-level", "warning")


def _progressd_environ(place: Place) -> Mapping[str, str]:
    return {
        "PROGRESSD_LIMITS_MAX_CONNECTIONS": str(FILES),
        "PROGRESSD_LIMITS_MAX_CONNECTIONS_PER_ADDRESS": str(FILES),
        "PROGRESSD_LIMITS_MAX_HANDSHAKES": str(FILES),
        "PROGRESSD_INGEST_SOCKET": str(place.socket),
        "PROGRESSD_STORE_RETENTION": "36500d",  # the finished jobs are filled in once and may grow old
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
        Server("progressd", "progressd", _progressd, _progressd_environ, snapshot=True),
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
            "trio-websocket, a task each",
            lambda place: (sys.executable, PEERS / "trio_server.py", str(place.port), place.socket),
        ),
        Server("floor", "bare `send()`", lambda place: (BUILT / "floor", str(place.port), place.socket)),
    )
}


@contextlib.contextmanager
def running(server: Server, environ: Mapping[str, str], state: Path | None = None) -> Iterator[Running]:
    """Start a server and stop it in the end; it must answer within a minute. Raises ServerFailed.

    `state`: a state directory to use, instead of an empty one.
    """
    # In /var/tmp, which is on a disk where /tmp may not be: the daemon's commits are to cost what they cost.
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
    raise ServerFailed(f"{server.name} did not come up: {place.last_words()}")


def _processes_of_group(group: int) -> list[int]:
    """nginx has a worker beside its master."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if int(entry.read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(entry.parent.name))
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    """First politely; the group is the one that was started here, and nothing else is in it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
