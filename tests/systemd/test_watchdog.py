"""The watchdog kills a stuck daemon, and the log names the reason.

Each test has its own daemon, and all of them wait for the timeout at the same time.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from support.daemon import registered
from support.machine import PATIENCE, Machine
from support.samples import ID

FREEZE = (Path(__file__).parent / "freeze.py").read_text()  # the machine need not see where the project lies
SECONDS = 3
PORTS = range(8081, 8085)


class Daemon:
    """An instance of the template with a short watchdog timeout."""

    def __init__(self, machine: Machine, port: int) -> None:
        self.machine = machine
        self.port = port
        self.unit = f"progressd@{port}.service"
        self.pid = self.main_pid()
        self.fed = self.last_fed()

    def main_pid(self) -> int:
        return int(self.machine.state(self.unit)["MainPID"])

    def last_fed(self) -> float:
        """When the watchdog was fed last, in seconds."""
        return int(self.machine.state(self.unit)["WatchdogTimestampMonotonic"]) / 1e6

    def is_killed(self) -> str:
        """Wait until it is killed and started again, and works; what the log says of the process that was killed."""
        machine = self.machine
        machine.eventually(lambda: self.main_pid() not in (0, self.pid))
        machine.eventually(lambda: machine.request("GET", "/api/health/ready", port=self.port).status == 200)
        assert machine.report(registered(ID), f"/run/progressd-{self.port}/ingest.sock")["ok"]
        assert "Watchdog timeout" in machine.log(self.unit)
        return machine.run("journalctl", f"_PID={self.pid}", "--output", "cat")

    def is_not_killed(self) -> None:
        """Wait for longer than the watchdog does, in which it is fed."""
        self.machine.eventually(lambda: self.last_fed() > self.fed + 2 * SECONDS)
        assert self.main_pid() == self.pid


class Daemons(NamedTuple):
    """Daemons, by their problem."""

    writer: Daemon
    loop: Daemon
    reload: "subprocess.Popen[str]"  # of the one whose event loop is stuck
    short: Daemon  # of descriptors
    waiting: socket.socket  # for that one to accept it
    well: Daemon


@pytest.fixture(scope="module")
def daemons(machine: Machine) -> Iterator[Daemons]:
    machine.write(
        "/etc/systemd/system/progressd@.service.d/watchdog.conf",
        f"[Service]\nWatchdogSec={SECONDS}\nTimeoutAbortSec=2\n",
    )
    for port in PORTS:
        machine.write(f"/etc/progressd/{port}.toml", "")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", *(f"progressd@{port}.{kind}" for port in PORTS for kind in ("socket", "service")))
    writer, loop, short, well = (Daemon(machine, port) for port in PORTS)
    with frozen(writer, "workers"), frozen(loop, "main"), reloading(loop) as reload, starved(short) as waiting:
        yield Daemons(writer, loop, reload, short, waiting, well)


@contextmanager
def frozen(daemon: Daemon, which: str) -> Iterator[None]:
    command = daemon.machine.inside("python3", "-c", FREEZE, str(daemon.pid), which)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as freezer:
        assert freezer.stdout is not None
        assert freezer.stdout.readline() == "frozen\n"
        yield


@contextmanager
def reloading(daemon: Daemon) -> "Iterator[subprocess.Popen[str]]":
    command = daemon.machine.inside("systemctl", "reload", daemon.unit)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as reload:
        yield reload


@contextmanager
def starved(daemon: Daemon) -> Iterator[socket.socket]:
    """Leave no descriptor for the connection that waits."""
    used = len(list((daemon.machine.root / f"proc/{daemon.pid}/fd").iterdir()))
    daemon.machine.run("prlimit", f"--nofile={used}:", "--pid", str(daemon.pid))
    with daemon.machine.connect(daemon.port) as waiting:
        yield waiting


def test_a_stuck_writer_is_killed(daemons: Daemons) -> None:
    assert 'watchdog ping withheld reason="ingest stores no changes"' in daemons.writer.is_killed()


def test_a_stuck_event_loop_is_killed(daemons: Daemons) -> None:
    assert "Fatal Python error: Aborted" in daemons.loop.is_killed()


def test_a_reload_of_a_stuck_daemon_times_out(daemons: Daemons) -> None:
    _, errors = daemons.reload.communicate(timeout=PATIENCE)
    assert daemons.reload.returncode == 1
    assert errors.startswith(f"Job for {daemons.loop.unit} failed")


def test_a_daemon_out_of_descriptors_recovers(machine: Machine, daemons: Daemons) -> None:
    daemons.short.is_not_killed()
    machine.run("prlimit", "--nofile=4096:", "--pid", str(daemons.short.pid))
    daemons.waiting.sendall(b"GET /api/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert daemons.waiting.makefile("rb").readline() == b"HTTP/1.1 200 \r\n"
    assert "cannot accept connections for now" in machine.log(daemons.short.unit)


def test_a_healthy_daemon_is_not_killed(machine: Machine, daemons: Daemons) -> None:
    daemons.well.is_not_killed()
    assert "jobs: 0 running, " in machine.state(daemons.well.unit)["StatusText"]
