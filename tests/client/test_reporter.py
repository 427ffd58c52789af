"""The reporter thread: no response and no defect ends it, and it respects rate limits."""

import gzip
import logging
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace
from progressd.client import Job
from progressd.client.pending import Event, EventAnswer, PendingEvents
from progressd.client.reporter import ReporterThread
from progressd.client.rest import MAX_ANSWERS
from support.answering import answer, answering, taken, unreachable
from support.reporting import SOON, warnings
from support.samples import ID
from support.waiting import PATIENCE, until


def test_bad_responses_do_not_lose_the_job(caplog: pytest.LogCaptureFixture) -> None:
    answers = [
        answer(b"nonsense", Content_Encoding="gzip"),
        answer(gzip.compress(b"x" * MAX_ANSWERS), Content_Encoding="gzip"),
        answer(b" " * MAX_ANSWERS + b"{}"),
        answer(b"<html>"),
        answer(b'{"ok": true}\n'),
        answer(b"<html>", 404),
        answer(b"<html>", 302, Location="/login"),
        answer(b'{"error": "it broke"}', 500),
        b"SSH-2.0-OpenSSH_9.2\r\nConnection: close\r\n",
        b"",
    ]
    with answering(*answers, taken) as server, Job("scan", url=server.url, timing=SOON):
        until(lambda: len(server.requests) > len(answers))
    assert b'"completed"' in server.requests[-1]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_respected(status: int) -> None:
    with answering(answer(b'{"error": "busy"}', status, Retry_After="1000"), taken) as server:
        with Job("scan", url=server.url, timing=SOON):
            pass_time(lambda: server.requests)
            assert len(server.requests) == 1
        assert b'"completed"' in server.requests[-1]


def test_a_rate_limit_slows_the_reports_down(caplog: pytest.LogCaptureFixture) -> None:
    timing = replace(SOON, slow_interval=1000)
    with answering(answer(b'{"error": "too many requests"}', 429), taken) as server:
        with Job("scan", url=server.url, timing=timing) as job:
            pass_time(lambda: len(server.requests) == 2)
            job.progress(1)
            pass_time(lambda: True)
            assert len(server.requests) == 2
        assert b'"completed"' in server.requests[-1]
    assert warnings(caplog) == []


def pass_time(condition: Callable[[], object]) -> None:
    """Wait for a condition, then for as long as ten reports take."""
    until(condition)
    begun = time.monotonic()
    until(lambda: time.monotonic() > begun + 10 * SOON.report_interval)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413])
def test_a_permanent_rejection_is_not_retried(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with answering(answer(b'{"error": "not here"}', status)) as server:
        with Job("scan", url=server.url, timing=SOON):
            until(lambda: warnings(caplog))
        assert len(server.requests) == 1
    assert warnings(caplog) == ["scan: not here; the work continues, but is not reported"]


class Flaky:
    """A transport that raises an unexpected error so many times."""

    def __init__(self, defects: int) -> None:
        self.defects = defects
        self.told: list[Event] = []

    def connect(self) -> None:
        if self.defects:
            self.defects -= 1
            raise ZeroDivisionError("a defect")

    def exchange(self, events: Sequence[Event]) -> list[EventAnswer]:
        self.told += events
        return [EventAnswer(ok=True)] * len(events)

    def close(self) -> None:
        pass


def reporting(transport: Flaky) -> ReporterThread:
    pending = PendingEvents(ID, {"kind": "scan"})
    reporter = ReporterThread("scan", pending, lambda: transport, None, timing=SOON)
    reporter.start()
    return reporter


def test_a_defect_is_logged_once_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    transport = Flaky(3)
    reporter = reporting(transport)
    until(lambda: transport.told)
    reporter.finish(lambda pending: pending.end("completed", {}), 1000)
    reporter.wait(PATIENCE)
    assert transport.told[-1]["type"] == "completed"
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.message == "scan: a defect; the work continues"
    assert record.exc_info is not None


def test_a_permanent_defect_does_not_delay_the_end() -> None:
    transport = Flaky(0)
    reporter = reporting(transport)
    until(lambda: transport.told)  # a daemon that has answered is waited for
    transport.defects = 1_000_000
    reporter.finish(lambda pending: pending.end("completed", {}), 1000)
    reporter.wait(PATIENCE)
    assert reporter.time_left() == 0


def test_a_log_handler_may_report_progress(caplog: pytest.LogCaptureFixture) -> None:
    stuck = []

    class Reporting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            other = threading.Thread(target=job.step, daemon=True)
            other.start()
            other.join(5)
            stuck.append(other.is_alive())

    handler = Reporting()
    logging.getLogger("progressd.client").addHandler(handler)
    try:
        with unreachable() as url, Job("scan", url=url, patience=0.1, timing=SOON) as job:
            pass
    finally:
        logging.getLogger("progressd.client").removeHandler(handler)
    assert (warnings(caplog), stuck) == (["scan: no daemon answered in time"], [False])
