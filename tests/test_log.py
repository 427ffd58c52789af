import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from progressd import log
from progressd.config import LogSettings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Full(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configured(stream: io.StringIO | None = None, **settings: Any) -> tuple[io.StringIO, Any]:
    stream = io.StringIO() if stream is None else stream
    log.configure(LogSettings(**settings), stream)
    return stream, structlog.get_logger()


def test_elsewhere_than_on_a_terminal_it_is_logfmt() -> None:
    stream, logger = configured()
    logger.info("job started", job_id="x y", attempt=1)
    line = stream.getvalue()
    assert line.startswith("timestamp=2")
    assert line.endswith('Z level=info message="job started" job_id="x y" attempt=1\n')


def test_on_a_terminal_it_is_coloured() -> None:
    stream, logger = configured(Terminal())
    logger.info("job started")
    assert "\x1b[" in stream.getvalue()


def test_json_has_one_object_a_line_with_the_time_first() -> None:
    stream, logger = configured(format="json")
    logger.warning("job\nfailed", job_id="x")
    assert list(json.loads(stream.getvalue())) == ["timestamp", "level", "message", "job_id"]


def test_what_is_less_important_is_left_out() -> None:
    stream, logger = configured(level="warning")
    logger.info("no")
    logger.warning("yes")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("format_", ["logfmt", "json", "console"])
def test_an_exception_is_named_without_a_traceback(format_: str) -> None:
    stream, logger = configured(format=format_)
    try:
        raise ExceptionGroup("group", [ValueError("bad"), ExceptionGroup("inner", [OSError("disk")])])
    except ExceptionGroup:
        logger.exception("connection failed")
    assert "ValueError: bad; OSError: disk" in stream.getvalue()
    assert "Traceback" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_at_debug_there_is_the_traceback() -> None:
    stream, logger = configured(level="debug")
    logger.error("failed", exc_info=ValueError("bad"))
    assert "ValueError: bad" in stream.getvalue()
    assert "exception=" in stream.getvalue()


@pytest.mark.parametrize("name", ["hypercorn.error", "hypercorn.access", "quart.app", "trio-websocket", "any.other"])
def test_the_libraries_are_heard_from_warning_on(name: str) -> None:
    stream, _ = configured(level="debug")
    logging.getLogger(name).info("no")
    logging.getLogger(name).warning("about %s", "this")
    assert f'level=warning message="about this" logger={name}' in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_what_a_client_sent_cannot_steer_the_terminal() -> None:
    for format_ in ("logfmt", "json", "console"):
        stream, logger = configured(format=format_)
        logger.info("upload", name="\x1b[2J\r\nlevel=error\x9b2J")
        logging.getLogger("hypercorn.error").error("\x1b[2J\n\x9b2J")
        assert not {"\x1b", "\r", "\x9b"} & set(stream.getvalue())
        assert stream.getvalue().count("\n") == 2


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    _, logger = configured(Full())
    logger.error("lost")
    logging.getLogger("hypercorn.error").error("lost as well")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.text())
def test_a_value_in_logfmt_is_one_word_or_a_json_string(value: str) -> None:
    stream, logger = configured(format="logfmt")
    logger.info("x", key=value)
    shown = stream.getvalue().removesuffix("\n").partition(" key=")[2]
    assert value == (json.loads(shown) if shown.startswith('"') else shown)
    assert shown.startswith('"') or " " not in shown
