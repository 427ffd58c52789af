"""The protocols of systemd, over real sockets. test_app has the tests with a daemon."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import progressd
import pytest
import trio
import trio.testing
from progressd.net.bind import open_sockets
from progressd.system import systemd
from progressd.system.systemd import Notifier, Watchdog, inherited_sockets, run_status
from structlog.testing import capture_logs
from support.daemon import settings_in
from support.waiting import PATIENCE
from trio.testing import MockClock


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address for NOTIFY_SOCKET."""
    return str(tmp_path / "notify") if request.param == "path" else f"@progressd-test-{os.getpid()}"


@pytest.fixture
def receiver(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + address[1:] if address.startswith("@") else address)
        receiver.settimeout(PATIENCE)
        yield receiver


def test_each_call_sends_one_message(address: str, receiver: socket.socket) -> None:
    with closing(Notifier({"NOTIFY_SOCKET": address})) as notify:
        notify("READY=1")
        notify("STATUS=two jobs — running", "STOPPING=1")
    assert receiver.recv(1000) == b"READY=1"
    assert receiver.recv(1000).decode() == "STATUS=two jobs — running\nSTOPPING=1"


def test_the_address_is_removed_from_the_environment() -> None:
    environ = {"NOTIFY_SOCKET": "/run/systemd/notify", "PATH": "/bin"}
    Notifier(environ).close()
    assert environ == {"PATH": "/bin"}


def test_without_systemd_nothing_happens() -> None:
    Notifier({})("READY=1")
    assert inherited_sockets({}) == []


def test_a_notice_never_blocks_or_raises(address: str, receiver: socket.socket) -> None:
    with closing(Notifier({"NOTIFY_SOCKET": address})) as notify, capture_logs() as logs:
        sent = 0
        while notify("WATCHDOG=1"):
            sent += 1
        assert not notify("WATCHDOG=1")
        for _ in range(sent):
            assert receiver.recv(1000) == b"WATCHDOG=1"
        assert notify("STOPPING=1")
        assert receiver.recv(1000) == b"STOPPING=1"
        receiver.close()
        assert not notify("WATCHDOG=1")
    assert [entry["event"] for entry in logs] == ["cannot notify systemd"] * 2


async def test_a_failed_status_is_sent_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    path = str(tmp_path / "notify")
    with (
        closing(Notifier({"NOTIFY_SOCKET": path})) as notify,
        trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_status, notify, lambda: "busy")
            nursery.start_soon(Watchdog(notify, 30, {}).run)
            await trio.testing.wait_all_tasks_blocked()
            await receiver.bind(path)
            assert {await receiver.recv(1000) for _ in range(2)} == {b"STATUS=busy", b"WATCHDOG=1"}
            nursery.cancel_scope.cancel()


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two blocking, inheritable listening sockets; not at systemd's descriptors, which the test runner uses."""
    first = 200
    monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", first)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.create_server(("127.0.0.1", 0)) as other:
        for descriptor, one in enumerate((tcp, other), first):
            os.dup2(one.fileno(), descriptor, inheritable=True)
        yield [first, first + 1]


def passing(count: int, pid: int | str) -> dict[str, str]:
    return {"LISTEN_FDS": str(count), "LISTEN_PID": str(pid), "LISTEN_FDNAMES": "http:ingest", "PATH": "/bin"}


def test_inherited_sockets_are_not_inheritable(passed: list[int]) -> None:
    environ = passing(2, os.getpid())
    sockets = inherited_sockets(environ)
    assert [one.fileno() for one in sockets] == passed
    for one in sockets:
        with one:
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert not one.getblocking()
            assert fcntl.fcntl(one, fcntl.F_GETFL) & os.O_NONBLOCK
            assert fcntl.fcntl(one, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("server", "warned"), [({}, False), ({"host": "0.0.0.0"}, True), ({"port": 1}, True), ({"port": "the one"}, False)]
)
def test_an_ignored_address_is_logged(passed: list[int], tmp_path: Path, server: dict[str, Any], warned: bool) -> None:
    os.close(passed[1])
    with socket.socket(fileno=os.dup(passed[0])) as held:
        port = held.getsockname()[1]
    given = {"port": 8080, **server}
    settings = settings_in(tmp_path, server={**given, "port": port if given["port"] == "the one" else given["port"]})
    with capture_logs() as logs, open_sockets(settings, passing(1, os.getpid())) as sockets:
        assert sockets.url == f"http://127.0.0.1:{port}"
    logged = [one["systemd"] for one in logs if one["log_level"] == "warning"]
    assert logged == ([f"127.0.0.1:{port}"] if warned else [])


def test_only_the_passed_sockets_are_used(passed: list[int]) -> None:
    [one] = inherited_sockets(passing(1, os.getpid()))
    one.close()
    os.fstat(passed[1])  # still open
    os.close(passed[1])


def test_sockets_of_another_process_are_ignored(passed: list[int]) -> None:
    environ = passing(2, os.getpid() + 1)
    assert inherited_sockets(environ) == []
    assert environ == {"PATH": "/bin"}
    for descriptor in passed:
        assert not fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(descriptor)


@pytest.mark.parametrize("unit", ["progressd.service", "progressd@.service"])
def test_the_start_has_no_timeout(unit: str) -> None:
    lines = (Path(progressd.__file__).parent / "units" / unit).read_text().splitlines()
    assert "TimeoutStartSec=infinity" in lines
