"""Messages in the journal's own protocol, read as journald reads them."""

import array
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from progressd import log
from progressd.config import LogSettings
from progressd.journal import Entry, Journal
from waiting import PATIENCE


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where messages arrive, and everything that is logged goes there."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "socket"))
        receiver.settimeout(PATIENCE)
        monkeypatch.setattr("progressd.journal.JournaldTransport.SOCKET_PATH", tmp_path / "socket")
        log.configure(LogSettings(format="journal"))
        yield receiver
        root.handlers[0].close()
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def received(journald: socket.socket) -> dict[str, str]:
    """The fields of the next message, from the datagram or from the memory file that came instead."""
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


def test_keys_are_fields_and_the_message_tells_them_too(journald: socket.socket) -> None:
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


def test_what_libraries_say_comes_too(journald: socket.socket) -> None:
    logging.getLogger("hypercorn.error").warning("about %s", "this")
    fields = received(journald)
    assert (fields["MESSAGE"], fields["LOGGER"]) == ("about this logger=hypercorn.error", "hypercorn.error")
    assert fields["PRIORITY"] == "4"


def test_a_message_too_long_for_a_datagram_comes_whole(journald: socket.socket) -> None:
    structlog.get_logger().info("x", place="y" * (1 << 20))
    assert received(journald)["PLACE"] == "y" * (1 << 20)


@given(st.text(), st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
def test_a_value_never_becomes_a_field(journald: socket.socket, message: str, value: str) -> None:
    structlog.get_logger().info(message, key=value)
    fields = received(journald)
    assert fields.keys() == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "KEY"}
    assert fields["KEY"] == value


def test_without_a_journal_the_message_is_lost_and_nothing_ends(tmp_path: Path) -> None:
    with closing(Journal(str(tmp_path / "none"))) as journal:
        journal.msg(Entry.of({"message": "x", "level": "info"}, ""))


def drained(journald: socket.socket) -> list[dict[str, str]]:
    """All messages that wait."""
    found = []
    journald.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(received(journald))
    return found


def test_a_journal_that_stalls_holds_up_nobody_and_what_it_lost_is_told_later(journald: socket.socket) -> None:
    begun = time.monotonic()
    for number in range(1000):
        structlog.get_logger().info("x", number=number)
    assert time.monotonic() - begun < 2 * PATIENCE
    kept = drained(journald)
    assert [fields["NUMBER"] for fields in kept] == [str(number) for number in range(len(kept))]
    assert 0 < len(kept) < 1000
    structlog.get_logger().info("y")
    loss, after = drained(journald)
    assert loss["MESSAGE"] == f"the journal has not taken all messages lost={1000 - len(kept)}"
    assert (loss["LOST"], loss["PRIORITY"], after["MESSAGE"]) == (str(1000 - len(kept)), "4", "y")
    structlog.get_logger().info("z")
    assert [fields["MESSAGE"] for fields in drained(journald)] == ["z"]


def test_a_journal_that_is_behind_for_a_moment_loses_nothing(
    journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progressd.journal.PATIENCE", PATIENCE)  # however busy the machine is
    numbers = list(map(str, range(2000)))
    with closing(Journal()) as journal, ThreadPoolExecutor(1) as reader:
        told = reader.submit(lambda: [received(journald)["MESSAGE"] for _ in numbers])
        for number in numbers:
            journal.msg(Entry.of({"message": number, "level": "info"}, ""))
    assert told.result() == numbers
