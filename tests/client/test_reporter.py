"""The thread that reports on a job: no answer and no defect ends it, and it asks no more often than it may."""

import gzip
import logging
import threading
import time
from collections.abc import Sequence

import pytest
from progressd.client import Job
from progressd.client.pending import Event, EventAnswer, PendingEvents
from progressd.client.reporter import ReporterThread
from progressd.client.rest import MAX_ANSWERS
from support.answering import answer, answering, taken, unreachable
from support.reporting import complaints
from support.samples import ID
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("soon")


def test_any_answer_is_survived_and_the_job_is_told_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
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
    with answering(*answers, taken) as server, Job("scan", url=server.url) as job:
        until(lambda: len(server.requests) > len(answers) and job._reporter._answered)
    assert b'"completed"' in server.requests[-1]
    assert len(complaints(caplog)) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_daemon_that_names_a_time_is_not_asked_before(status: int) -> None:
    with answering(answer(b'{"error": "busy"}', status, Retry_After="7"), taken) as server:
        with Job("scan", url=server.url) as job:
            until(lambda: job._reporter._failures)
            assert job._reporter._not_before - time.monotonic() > 5
            assert len(server.requests) == 1
        assert b'"completed"' in server.requests[-1]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413])
def test_a_daemon_that_says_no_is_not_asked_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with answering(answer(b'{"error": "not here"}', status)) as server:
        with Job("scan", url=server.url) as job:
            until(lambda: job._reporter._finished.is_set())
        assert len(server.requests) == 1
    assert complaints(caplog) == ["scan: not here; the work goes on all the same, unseen"]


class Flaky:
    """A way to a daemon with a defect, which is there as often as said."""

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


def reporting(lines: Flaky) -> ReporterThread:
    reporter = ReporterThread("scan", PendingEvents(ID, {"kind": "scan"}), lambda: lines, None)
    reporter.start()
    return reporter


def test_a_defect_is_logged_once_with_its_place_and_the_report_is_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    lines = Flaky(3)
    reporter = reporting(lines)
    until(lambda: lines.told)
    reporter.finish(lambda backlog: backlog.end("completed", {}), 1000)
    reporter.wait(PATIENCE)
    assert lines.told[-1]["type"] == "completed"
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.message == "scan: a defect; the work goes on all the same"
    assert record.exc_info is not None


def test_a_defect_that_stays_does_not_hold_up_the_end() -> None:
    reporter = reporting(Flaky(1_000_000))
    until(lambda: reporter._failures)
    reporter._answered = True
    reporter.finish(lambda backlog: backlog.end("completed", {}), 1000)
    assert reporter._finished.wait(PATIENCE)


def test_a_handler_of_the_log_may_report_progress(caplog: pytest.LogCaptureFixture) -> None:
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
        with unreachable() as url, Job("scan", url=url, patience=0.1) as job:
            pass
    finally:
        logging.getLogger("progressd.client").removeHandler(handler)
    assert (complaints(caplog), stuck) == (["scan: no daemon answered in time"], [False])
