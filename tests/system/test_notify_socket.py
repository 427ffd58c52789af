"""The notification socket, with the real systemd-notify, and the reading of its messages."""

import os
import shutil
import socket
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.events import ReportedProgress
from progressd.core.messages import encode
from progressd.system.notify_socket import MAX_DATAGRAM, Notifications, NotifySocket
from support.waiting import PATIENCE

TO_SYSTEMD = ("READY=1", "STOPPING=1", "RELOADING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1", "MAINPID=1", "BARRIER=1")


def fed(*messages: str) -> Notifications:
    notifications = Notifications()
    for message in messages:
        notifications.feed(message.encode())
    return notifications


@pytest.mark.parametrize(
    ("status", "progress"),
    [
        ("3/12 Upscaling", ReportedProgress(3, 12, "Upscaling")),
        ("[3/12] Upscaling", ReportedProgress(3, 12, "Upscaling")),
        ("(3 / 12): Upscaling", ReportedProgress(3, 12, "Upscaling")),
        ("3/12", ReportedProgress(3, 12)),
        ("45% Upscaling", ReportedProgress(0, 0, "Upscaling", 45)),
        ("Syncing… 45.5%", ReportedProgress(0, 0, "Syncing… 45.5%", 45.5)),
        ("Upscaling", ReportedProgress(0, 0, "Upscaling")),
        ("3/12/2026 begun", ReportedProgress(0, 0, "3/12/2026 begun")),
        ("3/0 pages", ReportedProgress(0, 0, "3/0 pages")),
        ("1/2.5 GB", ReportedProgress(0, 0, "1/2.5 GB")),
        ("-5% less", ReportedProgress(0, 0, "-5% less")),
        ("9999999999999999/9999999999999999 x", ReportedProgress(0, 0)),  # more than 2**53
        ("x" * 1500, ReportedProgress(0, 0, "x" * 1000)),
    ],
)
def test_a_status_is_progress(status: str, progress: ReportedProgress) -> None:
    assert fed(f"STATUS={status}").progress == progress


def test_a_status_without_numbers_keeps_the_numbers() -> None:
    assert fed("STATUS=3/12 One", "STATUS=Two").progress == ReportedProgress(3, 12, "Two")
    assert fed("STATUS=45% One", "STATUS=Two").progress == ReportedProgress(0, 0, "Two", 45)
    assert fed("STATUS=45% One", "STATUS=3/12 Two").progress == ReportedProgress(3, 12, "Two")


def test_own_fields_set_the_progress() -> None:
    fields = (
        "X_PROGRESSD_CURRENT_STEP=3\nX_PROGRESSD_TOTAL_STEPS=12\nX_PROGRESSD_STEP_NAME=Up\nX_PROGRESSD_PERCENT=26.5"
    )
    assert fed(fields).progress == ReportedProgress(3, 12, "Up", 26.5)
    wrong = "X_PROGRESSD_PERCENT=inf\nX_PROGRESSD_TOTAL_STEPS=-1\nX_PROGRESSD_CURRENT_STEP=x\nX_PROGRESSD_PERCENT=nan"
    assert fed(fields, wrong, "X_PROGRESSD_COLOUR=red").progress == ReportedProgress(3, 12, "Up", 26.5)


def test_errno_is_the_error() -> None:
    assert fed("ERRNO=2").error == "No such file or directory"
    assert fed("ERRNO=2", "ERRNO=0").error is None
    assert fed("ERRNO=99999", "ERRNO=x", "ERRNO=-1").error is None


def test_the_unit_and_the_phase_are_fields() -> None:
    notifications = Notifications()
    assert notifications.feed(b"X_PROGRESSD_UNIT=pages\nX_PROGRESSD_PHASE=Scan\nSTATUS=3/12 Page 3")
    notifications.feed(b"X_PROGRESSD_UNIT=" + b"x" * 21)
    assert notifications.progress == ReportedProgress(3, 12, "Page 3", unit="pages", phase="Scan")


@pytest.mark.parametrize("message", TO_SYSTEMD)
def test_messages_to_systemd_are_no_progress(message: str) -> None:
    assert Notifications().feed(message.encode()) is False


@given(st.lists(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: f"STATUS={text}".encode())))
def test_any_message_leaves_valid_progress(messages: list[bytes]) -> None:
    notifications = Notifications()
    for message in messages:
        notifications.feed(message)
        encode(notifications.progress)
    assert len(notifications.progress.step_name) <= 1000


async def test_long_and_waiting_messages_are_read() -> None:
    with NotifySocket() as notify, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
        program.connect(notify.environment["NOTIFY_SOCKET"])
        assert notify.receive_nowait() is None
        program.send(b"STATUS=" + b"x" * MAX_DATAGRAM)
        program.send(b"")
        assert notify.receive_nowait() is None
        program.send(b"STATUS=1/2")
        program.send(b"STATUS=2/2")
        assert await notify.receive() == ReportedProgress(2, 2)
        assert notify.receive_nowait() is None


def test_only_this_user_may_enter() -> None:
    with NotifySocket() as notify:
        directory = Path(notify.environment["NOTIFY_SOCKET"]).parent
        assert directory.stat().st_mode & 0o777 == 0o700
    assert not directory.exists()


def test_a_path_that_is_too_long_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    with pytest.raises(OSError, match="too long"):
        NotifySocket()
    assert list(deep.iterdir()) == []


async def test_systemd_notify_moves_the_bar() -> None:
    if shutil.which("systemd-notify") is None:
        pytest.skip("systemd-notify is not installed")
    descriptors = os.listdir("/proc/self/fd")
    with NotifySocket() as notify, trio.fail_after(PATIENCE):
        for arguments in (["--ready"], ["--status=3/12 Upscaling"]):
            # Without --no-block it waits until its descriptor is closed, or five seconds; then it exits with 1.
            async with trio.open_nursery() as nursery:
                received: list[ReportedProgress] = []

                async def receive(received: list[ReportedProgress] = received) -> None:
                    while True:
                        received.append(await notify.receive())

                nursery.start_soon(receive)
                await trio.run_process(["systemd-notify", *arguments], env={**os.environ, **notify.environment})
                nursery.cancel_scope.cancel()
        assert received == [ReportedProgress(3, 12, "Upscaling")]
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)
