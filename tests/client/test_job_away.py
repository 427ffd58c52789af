"""`Job` while the daemon is away or rejects it: the work continues, and the daemon receives the job later."""

import contextlib
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from progressd.client import Job
from support import keys
from support.answering import answer, answering, unreachable
from support.reporting import SOON, WAYS, request, seen, status, to, warnings, working
from support.serving import ServedDaemon, backup, restore, served_daemon
from support.waiting import PATIENCE, until

NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize("where", [{"url": NOBODY}, {"socket": "/no/such/socket"}, {"url": "nonsense"}])
def test_without_a_daemon_the_work_continues(where: Mapping[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    with Job("scan", 1000, timing=SOON, **where) as job:
        for number in range(1000):
            job.step(f"Page {number}")
    assert time.monotonic() - begun < PATIENCE
    [warning] = warnings(caplog)
    assert warning.startswith("scan: ")
    assert "; the work continues" in warning


def test_a_connection_that_times_out_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    with unreachable() as url, Job("scan", url=url, timing=replace(SOON, unconnected_timeout=0.2)):
        pass
    until(lambda: warnings(caplog) == ["scan: no daemon answered in time"])


def test_a_daemon_that_never_answers_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        begun = time.monotonic()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with Job("scan", url=url, patience=1000, timing=replace(SOON, unanswered_timeout=0.2)):
            connection, _ = deaf.accept()
        connection.close()
        assert time.monotonic() - begun < PATIENCE
    until(lambda: warnings(caplog) == ["scan: no daemon answered in time"])


def test_a_foreign_server_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    with answering(answer(b"<html>", 404)) as server:
        begun = time.monotonic()
        with Job("scan", url=server.url, patience=1000, timing=SOON):
            until(lambda: server.requests)
        assert time.monotonic() - begun < PATIENCE
    said = "answered with HTTP status 404; this does not seem to be progressd (check the URL); the work continues"
    assert warnings(caplog) == [f"scan: {server.url} {said}"]


def test_a_restored_daemon_receives_the_whole_job(
    tmp_path: Path, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    timing = replace(SOON, unanswered_timeout=0.0, unconnected_timeout=0.0)  # for daemons that have not answered
    state_dir = tmp_path / "state"
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(state_dir, port=free_port))
        backup(state_dir, tmp_path / "backup.db")
        ways = [closing.enter_context(working(**{**to(daemon, way), "timing": timing})) for way in WAYS]

        def steps(of: ServedDaemon) -> list[tuple[str, object]]:
            views = [seen(of, job) for job, _ in ways]
            return [(str(view.get("status")), view.get("progress", {}).get("current_step")) for view in views]

        for job, _ in ways:
            job.progress(7)
        until(lambda: steps(daemon) == [("processing", 7)] * 2)
        daemon.kill()
        restore(state_dir, tmp_path / "backup.db")
        with served_daemon(state_dir, port=free_port) as again:
            until(lambda: steps(again) == [("processing", 7)] * 2)
            for job, go in ways:
                job.progress(8)
                go.set()
            until(lambda: steps(again) == [("completed", 8)] * 2)
    assert not [warning for warning in warnings(caplog) if "nothing more" in warning]


def test_a_daemon_that_starts_later_receives_the_job(
    tmp_path: Path, daemon: ServedDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ingest.sock"
    with working(socket=path) as (job, go):
        job.progress(3)
        until(lambda: warnings(caplog))
        begun = time.monotonic()
        path.symlink_to(daemon.state_dir / "ingest.sock")
        until(lambda: seen(daemon, job).get("progress", {}).get("current_step") == 3)
        worked = time.monotonic() - begun
        go.set()
        until(lambda: status(daemon, job) == "completed")
        assert seen(daemon, job)["elapsed_seconds"] > worked - 0.01  # it began before the daemon received it


def test_an_unanswered_registration_is_followed_by_the_end(tmp_path: Path, daemon: ServedDaemon) -> None:
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
        path.symlink_to(daemon.state_dir / "ingest.sock")
        until(lambda: status(daemon, job) == "completed")


def test_a_daemon_that_hangs_does_not_block(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
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
        # The daemon may have been stopped before its first answer arrived.
        expected = {"scan: the daemon did not acknowledge the end", "scan: no daemon answered in time"}
        assert warnings(caplog)[-1] in expected
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_a_job_sends_its_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = keys.add(tmp_path / "state" / "keys.json", "ops", "read", "write")
    with served_daemon(tmp_path / "state", config="auth.required = true") as daemon:
        with Job("scan", url=daemon.url, key=key, timing=SOON) as job:
            pass
        response = request(daemon, "GET", job, headers=keys.bearer(key))
        assert response.json()["status"] == "completed"
        with Job("scan", url=daemon.url, timing=SOON):
            pass
    [warning] = warnings(caplog)
    assert warning.endswith("; the work continues, but is not reported")
