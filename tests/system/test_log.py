import array
import errno
import fcntl
import json
import logging
import os
import pty
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from progressd.system import log
from progressd.system.log_output import MAX_BYTES, LogQueue, stderr_is_journal
from support.waiting import PATIENCE, until


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    log.close()
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[IO[str]]:
    with open(tmp_path / "log", "a") as stream:
        yield stream


def configured(stream: IO[str], **settings: Any) -> Any:
    log.configure(**settings, stream=stream)
    return structlog.get_logger()


def written(stream: IO[str]) -> str:
    """Close the log, and return what it wrote."""
    log.close()
    text = Path(stream.name).read_bytes().decode()
    os.truncate(stream.name, 0)
    return text


def test_the_format_of_a_file_is_logfmt(stream: IO[str]) -> None:
    logger = configured(stream)
    logger.info("job started", job_id="x y", attempt=1)
    line = written(stream)
    assert line.startswith("timestamp=2")
    assert line.endswith('Z level=info message="job started" job_id="x y" attempt=1\n')


def test_the_format_of_a_terminal_is_coloured() -> None:
    master, slave = pty.openpty()
    with open(slave, "w") as terminal, open(master, "rb", buffering=0) as screen:
        configured(terminal).info("job started")
        assert b"\x1b[" in screen.read(1000)
        log.close()


def test_json_has_one_object_a_line(stream: IO[str]) -> None:
    logger = configured(stream, format="json")
    logger.warning("job\nfailed", job_id="x")
    assert list(json.loads(written(stream))) == ["timestamp", "level", "message", "job_id"]


def test_lower_levels_are_omitted(stream: IO[str]) -> None:
    logger = configured(stream, level="warning")
    logger.info("no")
    logger.warning("yes")
    assert written(stream).count("\n") == 1


@pytest.mark.parametrize("format_", ["logfmt", "json", "console"])
def test_an_exception_is_one_line(stream: IO[str], format_: str) -> None:
    logger = configured(stream, format=format_)
    try:
        raise ExceptionGroup("group", [ValueError("bad"), ExceptionGroup("inner", [OSError("disk")])])
    except ExceptionGroup:
        logger.exception("connection failed")
    text = written(stream)
    assert "ValueError: bad; OSError: disk" in text
    assert "Traceback" not in text
    assert text.count("\n") == 1


def test_debug_shows_the_traceback(stream: IO[str]) -> None:
    logger = configured(stream, level="debug")
    logger.error("failed", exc_info=ValueError("bad"))
    text = written(stream)
    assert "ValueError: bad" in text
    assert "exception=" in text


@pytest.mark.parametrize("name", ["hypercorn.error", "hypercorn.access", "quart.app", "trio-websocket", "any.other"])
def test_libraries_log_from_warning_on(stream: IO[str], name: str) -> None:
    configured(stream, level="debug")
    logging.getLogger(name).info("no")
    logging.getLogger(name).warning("about %s", "this")
    text = written(stream)
    assert f'level=warning message="about this" logger={name}' in text
    assert text.count("\n") == 1


def test_control_characters_are_escaped(stream: IO[str]) -> None:
    for format_ in ("logfmt", "json", "console"):
        logger = configured(stream, format=format_)
        logger.info("upload", name="\x1b[2J\r\nlevel=error\x9b2J")
        logging.getLogger("hypercorn.error").error("\x1b[2J\n\x9b2J")
        text = written(stream)
        assert not {"\x1b", "\r", "\x9b"} & set(text)
        assert text.count("\n") == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.text())
def test_a_logfmt_value_is_a_word_or_quoted(stream: IO[str], value: str) -> None:
    configured(stream, format="logfmt").info("x", key=value)
    line, end = written(stream).split("\n")
    assert end == ""
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*"|[^ ="]*', line.partition(" key=")[2])


def test_a_failing_output_raises_nothing() -> None:
    with open("/dev/full", "w") as full:
        configured(full).error("lost")
        logging.getLogger("hypercorn.error").error("lost as well")
        log.close()


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], IO[str]]]:
    """A pipe of 4 KiB without a reader."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
    with open(ends[0], "rb") as reader, open(ends[1], "w") as writer:
        yield reader, writer


def test_lines_dropped_for_a_stuck_reader_are_counted(pipe: tuple[IO[bytes], IO[str]]) -> None:
    reader, writer = pipe
    logger = configured(writer, format="json")
    number = MAX_BYTES // 1000 + 500
    for _ in range(number):
        logger.info("x" * 1000)
    lines = []
    while not lines or "lines" not in lines[-1]:
        lines.append(json.loads(reader.readline()))
    assert (lines[-1]["message"], lines[-1]["level"]) == ("log lines dropped", "warning")
    assert lines[-1]["lines"] > 0
    assert len(lines) - 1 + lines[-1]["lines"] == number
    logger.info("y")
    assert json.loads(reader.readline())["message"] == "y"


class FailingAtFirst:
    """An output that fails three times."""

    def __init__(self) -> None:
        self.tries = 0
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.tries += 1
        if self.tries <= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.lines.append(line)


def test_lines_that_cannot_be_written_are_counted() -> None:
    output = FailingAtFirst()
    queue = LogQueue(output.write, lambda dropped: b"%d dropped" % dropped)
    for number in range(1, 4):
        queue.msg(b"x")
        until(lambda number=number: output.tries == number)
    queue.msg(b"y")
    queue.close()
    assert output.lines == [b"y", b"3 dropped"]


def test_close_does_not_wait_for_a_stuck_reader(pipe: tuple[IO[bytes], IO[str]]) -> None:
    logger = configured(pipe[1])
    for _ in range(100):
        logger.info("x" * 1000)
    begun = time.monotonic()
    log.close()
    assert time.monotonic() - begun < PATIENCE


# The native protocol of the journal, decoded as journald does.


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """Send the log to a socket, and return the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "socket"))
        receiver.settimeout(PATIENCE)
        log.configure(format="journal", journal=str(tmp_path / "socket"))
        yield receiver


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


@pytest.mark.parametrize("same", [True, False])
def test_the_inode_tells_whether_stderr_is_the_journal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, same: bool
) -> None:
    with open(tmp_path / "stderr", "w") as stderr:
        status = os.stat(stderr.name if same else tmp_path)
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert stderr_is_journal() is same
