"""The native protocol of the journal, decoded as journald does."""

import array
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from progressd.system import log
from progressd.system.journal import stderr_is_journal
from progressd.system.log_queue import MAX_BYTES
from support.waiting import PATIENCE


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Send the log to a socket, and return the socket."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "socket"))
        receiver.settimeout(PATIENCE)
        monkeypatch.setattr("progressd.system.journal.SOCKET", str(tmp_path / "socket"))
        log.configure(format="journal")
        yield receiver
        log.close()
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def received(journald: socket.socket) -> dict[str, str]:
    """Return the fields of the next message, from its datagram or its memory file."""
    descriptors = array.array("i")
    data, ancillary, _, _ = journald.recvmsg(1 << 20, socket.CMSG_SPACE(descriptors.itemsize))
    for _, _, raw in ancillary:
        descriptors.frombytes(raw)
    for descriptor in descriptors:
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        os.close(descriptor)
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            [size] = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[9 + size :]
        fields[key.decode()] = value.decode()
    return fields


def test_keys_are_fields_and_part_of_the_message(journald: socket.socket) -> None:
    structlog.get_logger().info("job failed", job_id="1-2", error="no room")
    assert received(journald) == {
        "MESSAGE": 'job failed job_id=1-2 error="no room"',
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "progressd",
        "JOB_ID": "1-2",
        "ERROR": "no room",
    }


@pytest.mark.parametrize(("level", "priority"), [("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2")])
def test_each_level_has_its_priority(journald: socket.socket, level: str, priority: str) -> None:
    getattr(structlog.get_logger(), level)("x")
    assert received(journald)["PRIORITY"] == priority


def test_messages_of_libraries_arrive(journald: socket.socket) -> None:
    logging.getLogger("hypercorn.error").warning("about %s", "this")
    fields = received(journald)
    assert (fields["MESSAGE"], fields["LOGGER"]) == ("about this logger=hypercorn.error", "hypercorn.error")
    assert fields["PRIORITY"] == "4"


def test_a_message_may_exceed_a_datagram(journald: socket.socket) -> None:
    structlog.get_logger().info("x", place="y" * (1 << 20))
    assert received(journald)["PLACE"] == "y" * (1 << 20)


@given(st.text(), st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
def test_a_value_never_becomes_a_field(journald: socket.socket, message: str, value: str) -> None:
    structlog.get_logger().info(message, key=value)
    fields = received(journald)
    assert fields.keys() == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "KEY"}
    assert fields["KEY"] == value


def test_a_missing_journal_raises_nothing(journald: socket.socket) -> None:
    os.unlink(journald.getsockname())
    structlog.get_logger().info("x")
    log.close()


def test_a_stalled_journal_loses_nothing_within_the_limit(journald: socket.socket) -> None:
    for number in range(2000):
        structlog.get_logger().info("x", number=number)
    assert [received(journald)["NUMBER"] for _ in range(2000)] == list(map(str, range(2000)))


def test_messages_dropped_for_a_stalled_journal_are_counted(journald: socket.socket) -> None:
    number = 2 * MAX_BYTES // 1000
    for _ in range(number):
        structlog.get_logger().info("x", text="y" * 500)
    kept = 0
    while (fields := received(journald))["MESSAGE"].startswith("x "):
        kept += 1
    assert fields["MESSAGE"] == f"log lines dropped lines={number - kept}"
    assert (fields["LINES"], fields["PRIORITY"]) == (str(number - kept), "4")
    structlog.get_logger().info("z")
    assert received(journald)["MESSAGE"] == "z"


@pytest.mark.parametrize("same", [True, False])
def test_the_inode_tells_whether_stderr_is_the_journal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, same: bool
) -> None:
    with open(tmp_path / "stderr", "w") as stderr:
        status = os.stat(stderr.name if same else tmp_path)
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert stderr_is_journal() is same
