"""The watchdog bites when the daemon has stopped working, whatever has stopped in it, and the log says what."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine import Machine
from samples import ID

from daemon import registered

FREEZE = (Path(__file__).parent / "freeze.py").read_text()  # the machine need not see where the project lies
SECONDS = 1.2


@pytest.fixture(autouse=True)
def pid(machine: Machine) -> Iterator[int]:
    """A daemon that works under a watchdog of little patience."""
    machine.write(
        "/etc/systemd/system/progressd.service.d/watchdog.conf",
        f"[Service]\nWatchdogSec={SECONDS}\nTimeoutAbortSec=2\n",
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "progressd.socket", "progressd.service")
    yield main_pid(machine)
    machine.run("systemctl", "stop", "progressd.socket", "progressd-ingest.socket", "progressd.service")


def main_pid(machine: Machine) -> int:
    return int(machine.state("progressd.service")["MainPID"])


@contextmanager
def frozen(machine: Machine, pid: int, which: str) -> Iterator[None]:
    command = machine.inside("python3", "-c", FREEZE, str(pid), which)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as freezer:
        assert freezer.stdout is not None
        assert freezer.stdout.readline() == "frozen\n"
        yield


def is_bitten(machine: Machine, pid: int) -> str:
    """Wait until it is killed and started again, and works; what the log says of the process that was killed."""
    machine.eventually(lambda: main_pid(machine) not in (0, pid))
    machine.eventually(lambda: machine.request("GET", "/api/health/ready").status == 200)
    assert machine.report(registered(ID))["ok"]
    assert "Watchdog timeout" in machine.log("progressd.service")
    return machine.run("journalctl", f"_PID={pid}", "--output", "cat")


def test_a_stuck_writer(machine: Machine, pid: int) -> None:
    with frozen(machine, pid, "others"):
        assert "ingest does not commit, so the watchdog is not fed" in is_bitten(machine, pid)


def test_a_stuck_event_loop(machine: Machine, pid: int) -> None:
    with frozen(machine, pid, "main"):
        log = is_bitten(machine, pid)
    assert "the event loop is stuck, so the watchdog is not fed" in log
    assert "Fatal Python error: Aborted" in log


def is_left_alone(machine: Machine, pid: int) -> None:
    """Wait for longer than the watchdog does, in which it is fed."""
    before = machine.state("progressd.service")["WatchdogTimestampMonotonic"]
    machine.eventually(
        lambda: int(machine.state("progressd.service")["WatchdogTimestampMonotonic"]) > int(before) + 2e6 * SECONDS
    )
    assert main_pid(machine) == pid


def test_a_daemon_out_of_descriptors_is_left_alone_and_mends(machine: Machine, pid: int) -> None:
    used = len(list((machine.root / f"proc/{pid}/fd").iterdir()))
    machine.run("prlimit", f"--nofile={used}:", "--pid", str(pid))
    with machine.connect() as waiting:
        is_left_alone(machine, pid)
        machine.run("prlimit", "--nofile=4096:", "--pid", str(pid))
        waiting.sendall(b"GET /api/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert waiting.makefile("rb").readline() == b"HTTP/1.1 200 \r\n"
    assert "cannot accept connections for now" in machine.log("progressd.service")


def test_a_daemon_that_works_is_left_alone(machine: Machine, pid: int) -> None:
    is_left_alone(machine, pid)
    assert "jobs: 0 running, " in machine.state("progressd.service")["StatusText"]
