"""`Job` in a program: what watchers see of it, and that nothing about the daemon disturbs the work."""

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import keys
import pytest
import trio
import trio.lowlevel
from progressd.client import Job, JobCancelled, reporter
from progressd.client.backoff import backoff
from serving import PATIENCE, ServedDaemon, served_daemon
from waiting import until

NOBODY = "http://127.0.0.1:1"
WAYS = ["socket", "url"]


@pytest.fixture
def daemon(served: ServedDaemon) -> ServedDaemon:
    return served


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits a tenth as long."""
    monkeypatch.setattr("progressd.client.reporter.backoff", lambda failures, longest: backoff(failures, longest) / 10)
    for wait in ("BEAT", "PACE"):
        monkeypatch.setattr(f"progressd.client.reporter.{wait}", getattr(reporter, wait) / 10)


def to(daemon: ServedDaemon, way: str = "socket") -> dict[str, Any]:
    return {"url": daemon.url} if way == "url" else {"socket": daemon.state_dir / "ingest.sock"}


def request(daemon: ServedDaemon, method: str, job: Job | str, **what: Any) -> httpx.Response:
    job_id = job if isinstance(job, str) else job.id
    return httpx.request(method, f"{daemon.url}/api/jobs/{job_id}", trust_env=False, timeout=PATIENCE, **what)


def seen(daemon: ServedDaemon, job: Job | str) -> dict[str, Any]:
    """The job as the daemon shows it; empty while it does not know it."""
    response = request(daemon, "GET", job)
    view: dict[str, Any] = response.json() if response.is_success else {}
    return view


def status(daemon: ServedDaemon, job: Job | str) -> str:
    return str(seen(daemon, job).get("status"))


def cancel(daemon: ServedDaemon, job: Job) -> None:
    until(lambda: status(daemon, job) == "processing")
    assert request(daemon, "DELETE", job).is_success


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("way", WAYS)
def test_a_block_is_a_job_and_shows_how_far_it_is(way: str, daemon: ServedDaemon) -> None:
    with Job(
        "scan", 4, input_filename="book.pdf", labels={"team": "scan"}, options={"dpi": 600}, **to(daemon, way)
    ) as job:
        until(lambda: status(daemon, job) == "processing")
        for name in ("Looking", "Straightening", "Cleaning"):
            job.step(name)
        until(lambda: seen(daemon, job)["progress"]["step_name"] == "Cleaning")
        progress = seen(daemon, job)["progress"]
        assert (progress["current_step"], progress["total_steps"], progress["percent"]) == (2, 4, 50)
        job.result("https://files.example/book.pdf", page_count=7)
    ended = seen(daemon, job)
    assert ended["progress"]["percent"] == 75  # the step that was under way is done
    assert (ended["status"], ended["kind"], ended["input_filename"]) == ("completed", "scan", "book.pdf")
    assert (ended["labels"], ended["options"], ended["lease_seconds"]) == ({"team": "scan"}, {"dpi": 600}, 60.0)
    assert (ended["output_path"], ended["page_count"]) == ("https://files.example/book.pdf", 7)


def test_progress_is_told_as_numbers_or_as_a_percentage(daemon: ServedDaemon) -> None:
    with Job("copy", **to(daemon)) as job:
        job.progress(3, 12, "Copying")
        until(lambda: seen(daemon, job).get("progress", {}).get("percent") == 25)
        job.step("Checking")
        until(lambda: seen(daemon, job)["progress"]["step_name"] == "Checking")
        assert seen(daemon, job)["progress"]["current_step"] == 3
        job.progress(percent=66.6)
        until(lambda: seen(daemon, job)["progress"]["percent"] == 66)


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("even this went wrong")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("error", "ended", "sentence"),
    [
        (OSError(28, "No space left on device"), "failed", "[Errno 28] No space left on device"),
        (ValueError("no pages in it"), "failed", "no pages in it"),
        (KeyError("dpi"), "failed", "KeyError: 'dpi'"),
        (RuntimeError(), "failed", "RuntimeError"),
        (Mute(), "failed", "Mute"),
        (ExceptionGroup("2 tasks", [ValueError("no pages in it")]), "failed", "no pages in it"),
        (UnicodeError("bad name \udcff"), "failed", "bad name ?"),
        (SystemExit("no paper left"), "failed", "no paper left"),
        (SystemExit(3), "failed", "it ended with exit status 3"),
        (SystemExit(0), "completed", None),
        (KeyboardInterrupt(), "cancelled", None),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, BaseException) else "",
)
def test_an_exception_ends_the_job_and_goes_on(
    way: str, error: BaseException, ended: str, sentence: str | None, daemon: ServedDaemon
) -> None:
    with pytest.raises(type(error)) as caught, Job("scan", **to(daemon, way)) as job:
        raise error
    assert caught.value is error
    view = seen(daemon, job)
    assert (view["status"], view.get("error")) == (ended, sentence)


def test_whatever_leaves_the_block_the_job_does_not_go_on_for_ever(daemon: ServedDaemon) -> None:
    class Interrupted(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Job("scan", **to(daemon)) as job:
        raise Interrupted
    job._reporter._thread.join(PATIENCE)
    assert not job._reporter._thread.is_alive()


def test_file_names_that_are_no_text_are_told_as_far_as_they_are(daemon: ServedDaemon) -> None:
    name = "a\udcff"
    with Job(name, input_filename=name, options={name: [name, "ä"]}, labels={name: name}, **to(daemon)) as job:
        job.step(name)
        job.result(f"https://files.example/{name}")
    view = seen(daemon, job)
    assert (view["status"], view["kind"], view["input_filename"]) == ("completed", "a?", "a?")
    assert view["output_path"] == "https://files.example/a?"
    assert (view["options"], view["labels"]) == ({"a?": ["a?", "ä"]}, {"a?": "a?"})
    assert view["progress"]["step_name"] == "a?"


@pytest.mark.parametrize("where", [{"url": NOBODY}, {"socket": "/no/such/socket"}, {"url": "nonsense"}])
def test_where_there_is_no_daemon_the_work_goes_on_and_that_is_said_once(
    where: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    with Job("scan", 1000, **where) as job:
        for number in range(1000):
            job.step(f"Page {number}")
    assert time.monotonic() - begun < 5
    [complaint] = complaints(caplog)
    assert complaint.startswith("scan: ")
    assert "; the work goes on all the same" in complaint


NO_MORE_THREADS = """
import pathlib, resource, threading, trio
threading.stack_size(2**29)
def no_more_threads():
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**27,) * 2)
"""


@pytest.mark.parametrize(
    "body",
    [
        """
no_more_threads()
with Job("scan", socket=where) as job:
    job.step("Looking")
print("done")
""",
        """
async def work():
    no_more_threads()
    async with Job("scan", socket=where) as job:
        job.step("Looking")
    print("done")
trio.run(work)
""",
    ],
    ids=["with", "async with"],
)
def test_where_no_thread_can_be_started_the_work_goes_on_unseen(body: str, daemon: ServedDaemon) -> None:
    begun = time.monotonic()
    done = subprocess.run(script(daemon, NO_MORE_THREADS + body), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.returncode, time.monotonic() - begun < 10) == ("done\n", 0, True)
    assert done.stderr == "scan: can't start new thread; the work goes on all the same, unseen\n"


def test_in_trio_the_end_is_told_where_no_more_threads_can_be_started(daemon: ServedDaemon) -> None:
    body = """
async def work():
    async with Job("scan", socket=where) as job:
        no_more_threads()
    print(job.id)
trio.run(work)
"""
    done = subprocess.run(script(daemon, NO_MORE_THREADS + body), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stderr, done.returncode) == ("", 0)
    assert status(daemon, done.stdout.strip()) == "completed"


@contextlib.contextmanager
def working(**how: Any) -> Iterator[tuple[Job, threading.Event]]:
    """A job in another thread, and the event that ends it; the thread has ended when the block is left."""
    job, go = Job("scan", 10, **how), threading.Event()

    def work() -> None:
        with job:
            go.wait(PATIENCE)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield job, go
    finally:
        go.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("way", WAYS)
def test_a_daemon_that_is_killed_and_started_again_is_told_what_it_missed(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state_dir = tmp_path / "state"
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(state_dir))
        job, go = closing.enter_context(working(**to(daemon, way)))
        until(lambda: status(daemon, job) == "processing")
        daemon.kill()
        job.progress(7)
        until(lambda: complaints(caplog))
        with served_daemon(state_dir, port=daemon.port) as again:
            until(lambda: seen(again, job)["progress"]["current_step"] == 7)
            again.kill()
        job.progress(8)
        go.set()
        until(lambda: job._reporter._closing)
        with served_daemon(state_dir, port=daemon.port) as again:
            until(lambda: status(again, job) == "completed")
            assert seen(again, job)["progress"]["current_step"] == 8


def test_a_daemon_that_starts_after_the_job_is_told_all_of_it(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with working(socket=state_dir / "ingest.sock") as (job, go):
        job.progress(3)
        with served_daemon(state_dir) as daemon:
            until(lambda: seen(daemon, job).get("progress", {}).get("current_step") == 3)
            go.set()
            until(lambda: status(daemon, job) == "completed")
            view = seen(daemon, job)
    told = datetime.fromisoformat(view["completed_at"]) - datetime.fromisoformat(view["started_at"])
    assert view["elapsed_seconds"] > told.total_seconds()  # it had begun long before


def test_a_daemon_that_may_have_heard_of_the_job_is_told_its_end(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ingest.sock"
    path.parent.mkdir()
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
        with served_daemon(path.parent) as daemon:
            until(lambda: status(daemon, job) == "completed")


def test_a_daemon_that_hangs_keeps_neither_the_work_nor_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with served_daemon(tmp_path / "state") as daemon:
        try:
            with Job("scan", 100_000, patience=0.5, **to(daemon)) as job:
                until(lambda: status(daemon, job) == "processing")
                daemon.process.send_signal(signal.SIGSTOP)
                begun = time.monotonic()
                for _ in range(100_000):
                    job.step("Page")
                worked = time.monotonic() - begun
                begun = time.monotonic()
            assert (worked < 10, time.monotonic() - begun < 5) == (True, True)
            assert complaints(caplog)[-1] == "scan: the daemon was not told how it ended"
        finally:
            daemon.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("way", WAYS)
def test_a_job_that_is_cancelled_stops_at_its_next_report(way: str, daemon: ServedDaemon) -> None:
    def work() -> None:
        with job:
            cancel(daemon, job)
            while True:
                job.step("Page")
                time.sleep(0.001)

    job = Job("scan", **to(daemon, way))
    with pytest.raises(JobCancelled):
        work()
    assert (status(daemon, job), job.cancelled) == ("cancelled", True)


def test_a_cancellation_is_seen_by_a_job_that_says_nothing_and_may_be_ignored(
    daemon: ServedDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    with Job("scan", stop_when_cancelled=False, **to(daemon)) as job:
        cancel(daemon, job)
        until(lambda: job.cancelled)
        job.step("Tidying up")
    assert (status(daemon, job), complaints(caplog)) == ("cancelled", [])


async def test_in_trio_the_block_is_a_job_too(daemon: ServedDaemon) -> None:
    async with Job("scan", 2, **to(daemon)) as job:
        job.step("Looking")
        await trio.lowlevel.checkpoint()
    assert status(daemon, job) == "completed"
    with pytest.raises(ValueError, match="no pages"):
        async with Job("scan", **to(daemon)) as job:
            raise ValueError("no pages in it")
    assert seen(daemon, job)["error"] == "no pages in it"


async def test_in_trio_a_cancelled_job_is_interrupted_and_a_cancelled_block_is_a_cancelled_job(
    daemon: ServedDaemon,
) -> None:
    async def work() -> None:
        async with Job("scan", **to(daemon)) as job:
            await trio.to_thread.run_sync(cancel, daemon, job)
            await trio.sleep_forever()

    with trio.fail_after(PATIENCE), pytest.raises(JobCancelled):
        await work()
    with trio.CancelScope() as outer:
        async with Job("scan", **to(daemon)) as job:
            outer.cancel()
            await trio.sleep_forever()
    assert status(daemon, job) == "cancelled"


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
    config = "limits = {rate_limit_per_minute = 300, rate_limit_burst = 1, unlimited = []}"
    with served_daemon(tmp_path / "state", config=config) as daemon:
        with Job("scan", url=daemon.url) as job:
            until(lambda: job.progress(1) or job._reporter._pace == reporter.SLOW_PACE)
        until(lambda: status(daemon, job) == "completed")
    assert complaints(caplog) == []


def test_where_the_daemon_is_comes_from_the_environment(daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SOCKET": f"{daemon.state_dir}/ingest.sock", "URL": daemon.url}.items():
        monkeypatch.setenv(f"PROGRESSD_{name}", value)
        with Job("scan") as job:
            pass
        assert status(daemon, job) == "completed"


def test_in_a_program_that_is_a_job_already_it_reports_on_that(
    daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Job("outer", **to(daemon)) as outer:
        until(lambda: status(daemon, outer) == "processing")
        monkeypatch.setenv("PROGRESSD_JOB_ID", outer.id)
        with Job("inner", 4, **to(daemon)) as inner:
            inner.progress(3)
        view = seen(daemon, outer)
        assert (inner.id, view["status"], view["progress"]["percent"]) == (outer.id, "processing", 75)
    assert status(daemon, outer) == "completed"


def script(daemon: ServedDaemon, body: str) -> list[str]:
    where = str(daemon.state_dir / "ingest.sock")
    return [sys.executable, "-W", "error", "-c", f"from progressd.client import Job\nwhere = {where!r}\n{body}"]


def test_a_plain_script_loads_neither_trio_nor_an_http_library(daemon: ServedDaemon) -> None:
    body = """
import sys
with Job("scan", socket=where) as job:
    job.step("Looking")
print(*{"trio", "httpx", "asyncio"} & set(sys.modules))
"""
    done = subprocess.run(script(daemon, body), capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_fork_of_the_program_reports_nothing_and_ends_nothing(daemon: ServedDaemon) -> None:
    body = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
with Job("scan", socket=where) as job:
    if (child := os.fork()) == 0:
        job.step("In the fork")
        sys.exit("the fork failed")
    os.waitpid(child, 0)
    print(job.id)
"""
    done = subprocess.run(script(daemon, body), capture_output=True, text=True, timeout=PATIENCE, check=True)
    view = seen(daemon, done.stdout.strip())
    assert (view["status"], view["progress"]["step_name"]) == ("completed", "")


def test_a_lease_is_renewed_as_long_as_the_program_runs_and_no_longer(daemon: ServedDaemon) -> None:
    body = """
import sys, time
with Job("scan", lease_seconds=0.5, socket=where) as job:
    print(job.id, flush=True)
    sys.stdin.read()
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(script(daemon, body), **pipes) as process:
        try:
            assert process.stdout is not None
            job = process.stdout.readline().strip()
            cursors = set()

            def renewed() -> bool:
                view = seen(daemon, job)
                cursors.add(view.get("cursor"))
                assert not view.get("progress", {}).get("stalled")
                return len(cursors) > 6  # more than two leases

            until(renewed)
            assert status(daemon, job) == "processing"
        finally:
            process.kill()
    until(lambda: status(daemon, job) == "failed")
    assert seen(daemon, job)["error"] == "producer lost"
