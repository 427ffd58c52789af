"""`Job` where the daemon is away, or turns it away: the work goes on, and the daemon is told once it takes reports."""

import contextlib
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from progressd.client import Job, reporter
from support import keys
from support.answering import answer, answering, unreachable
from support.reporting import WAYS, complaints, request, seen, status, to, working
from support.serving import ServedDaemon, backup, restore, served_daemon
from support.waiting import PATIENCE, until

NOBODY = "http://127.0.0.1:1"

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def daemon(served: ServedDaemon) -> ServedDaemon:
    return served


@pytest.mark.parametrize("where", [{"url": NOBODY}, {"socket": "/no/such/socket"}, {"url": "nonsense"}])
def test_where_there_is_no_daemon_the_work_goes_on_and_that_is_said_once(
    where: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    with Job("scan", 1000, **where) as job:
        for number in range(1000):
            job.step(f"Page {number}")
    assert time.monotonic() - begun < PATIENCE
    [complaint] = complaints(caplog)
    assert complaint.startswith("scan: ")
    assert "; the work goes on all the same" in complaint


def test_where_connecting_times_out_the_work_is_not_held_up(caplog: pytest.LogCaptureFixture) -> None:
    with unreachable() as url:
        with Job("scan", url=url) as job:
            pass
        assert job._reporter._failures == 0  # the first attempt goes on
    until(lambda: complaints(caplog) == ["scan: no daemon answered in time"])


def test_a_daemon_that_connects_and_never_answers_does_not_hold_up_the_work(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progressd.client.reporter.UNANSWERED_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        begun = time.monotonic()
        with Job("scan", url=f"http://127.0.0.1:{deaf.getsockname()[1]}", patience=1000) as job:
            until(lambda: job._reporter._connected)
        assert time.monotonic() - begun < PATIENCE
    until(lambda: complaints(caplog) == ["scan: no daemon answered in time"])


def test_something_else_that_answers_does_not_hold_up_the_work(caplog: pytest.LogCaptureFixture) -> None:
    with answering(answer(b"<html>", 404)) as server:
        begun = time.monotonic()
        with Job("scan", url=server.url, patience=1000):
            until(lambda: server.requests)
        assert time.monotonic() - begun < PATIENCE
    assert complaints(caplog) == [f"scan: {server.url} answered with HTTP status 404; the work goes on all the same"]


def test_a_daemon_that_is_killed_and_started_again_is_told_what_it_missed(
    tmp_path: Path, free_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unknown in ("UNANSWERED", "UNCONNECTED"):  # daemons are not waited for, but this one is
        monkeypatch.setattr(f"progressd.client.reporter.{unknown}_TIMEOUT", 0.0)
    state_dir = tmp_path / "state"
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(state_dir, port=free_port))
        ways = [closing.enter_context(working(**to(daemon, way))) for way in WAYS]
        jobs = [job for job, _ in ways]
        until(lambda: [status(daemon, job) for job in jobs] == ["processing"] * 2)
        daemon.kill()
        for job in jobs:
            job.progress(7)
        until(lambda: len(complaints(caplog)) == 2)
        with served_daemon(state_dir, port=free_port) as again:
            until(lambda: [seen(again, job)["progress"]["current_step"] for job in jobs] == [7, 7])
            again.kill()
        for job, go in ways:
            job.progress(8)
            go.set()
        until(lambda: all(job._reporter._closed_at for job in jobs))
        with served_daemon(state_dir, port=free_port) as again:
            until(lambda: [status(again, job) for job in jobs] == ["completed"] * 2)
            assert [seen(again, job)["progress"]["current_step"] for job in jobs] == [8, 8]


def test_a_daemon_that_was_restored_from_a_backup_is_told_all_of_the_job(
    tmp_path: Path, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    state_dir = tmp_path / "state"
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(state_dir, port=free_port))
        backup(state_dir, tmp_path / "backup.db")
        ways = [closing.enter_context(working(**to(daemon, way))) for way in WAYS]
        for job, _ in ways:
            job.progress(7)
        until(lambda: [seen(daemon, job).get("progress", {}).get("current_step") for job, _ in ways] == [7, 7])
        daemon.kill()
        restore(state_dir, tmp_path / "backup.db")
        with served_daemon(state_dir, port=free_port) as again:
            until(lambda: [status(again, job) for job, _ in ways] == ["processing"] * 2)
            assert [seen(again, job)["progress"]["current_step"] for job, _ in ways] == [7, 7]
            for _, go in ways:
                go.set()
            until(lambda: [status(again, job) for job, _ in ways] == ["completed"] * 2)
    assert not [complaint for complaint in complaints(caplog) if "any more" in complaint]


def test_a_daemon_that_starts_after_the_job_is_told_all_of_it(tmp_path: Path, daemon: ServedDaemon) -> None:
    path = tmp_path / "ingest.sock"
    with working(socket=path) as (job, go):
        job.progress(3)
        until(lambda: job._reporter._failures)
        begun = time.monotonic()
        path.symlink_to(daemon.state_dir / "ingest.sock")
        until(lambda: seen(daemon, job).get("progress", {}).get("current_step") == 3)
        worked = time.monotonic() - begun
        go.set()
        until(lambda: status(daemon, job) == "completed")
        assert seen(daemon, job)["elapsed_seconds"] > worked - 0.01  # it had begun before the daemon heard of it


def test_a_daemon_that_may_have_heard_of_the_job_is_told_its_end(tmp_path: Path, daemon: ServedDaemon) -> None:
    path = tmp_path / "ingest.sock"
    with contextlib.ExitStack() as closing:
        with socket.socket(socket.AF_UNIX) as dying:
            dying.bind(str(path))
            dying.listen()
            job, go = closing.enter_context(working(socket=path))
            connection, _ = dying.accept()
            with connection:
                assert b"job_created" in connection.recv(65536)
        path.unlink()
        go.set()
        until(lambda: job._reporter._closed_at and job._reporter._failures > 1)
        path.symlink_to(daemon.state_dir / "ingest.sock")
        until(lambda: status(daemon, job) == "completed")


def test_a_daemon_that_hangs_keeps_neither_the_work_nor_its_end(
    daemon: ServedDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        with Job("scan", 100_000, patience=0.5, **to(daemon)) as job:
            until(lambda: status(daemon, job) == "processing")
            daemon.process.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            for _ in range(100_000):
                job.step("Page")
            worked = time.monotonic() - begun
            begun = time.monotonic()
        assert (worked < PATIENCE, time.monotonic() - begun < PATIENCE) == (True, True)
        assert complaints(caplog)[-1] == "scan: the daemon was not told how it ended"
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_a_daemon_that_asks_for_a_key_gets_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = keys.add(tmp_path / "state" / "keys.json", "ops", "read", "write")
    with served_daemon(tmp_path / "state", config="auth.required = true") as daemon:
        with Job("scan", url=daemon.url, key=key) as job:
            pass
        response = request(daemon, "GET", job, headers=keys.bearer(key))
        assert response.json()["status"] == "completed"
        with Job("scan", url=daemon.url):
            pass
    [complaint] = complaints(caplog)
    assert complaint.endswith("; the work goes on all the same, unseen")


def test_a_daemon_that_is_asked_too_often_is_asked_less_often(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = "limits = {rate_limit_per_minute = 300, rate_limit_burst = 1, exempt_addresses = []}"
    with served_daemon(tmp_path / "state", config=config) as daemon:
        with Job("scan", url=daemon.url) as job:
            until(lambda: job.progress(1) or job._reporter._pace == reporter.SLOW_PACE)
        until(lambda: status(daemon, job) == "completed")
    assert complaints(caplog) == []
