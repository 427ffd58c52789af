"""`Job` in a program: what watchers see, and that invalid values do not stop the work."""

import subprocess
import sys
import time
from contextlib import ExitStack
from decimal import Decimal
from math import inf, nan
from typing import Any

import pytest
from progressd.client import Job, JobCancelled
from support.reporting import WAYS, request, seen, status, to, warnings
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until


def cancel(daemon: ServedDaemon, job: Job) -> None:
    until(lambda: status(daemon, job) == "processing")
    assert request(daemon, "DELETE", job).is_success


@pytest.mark.parametrize("way", WAYS)
def test_a_block_is_a_job(way: str, daemon: ServedDaemon) -> None:
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
    assert (ended["progress"]["current_step"], ended["progress"]["percent"]) == (3, 100)  # the end finishes the step
    assert (ended["status"], ended["kind"], ended["input_filename"]) == ("completed", "scan", "book.pdf")
    assert (ended["labels"], ended["options"], ended["lease_seconds"]) == ({"team": "scan"}, {"dpi": 600}, 60.0)
    assert (ended["output_path"], ended["page_count"]) == ("https://files.example/book.pdf", 7)


def test_progress_is_steps_or_a_percentage(daemon: ServedDaemon) -> None:
    with Job("copy", **to(daemon)) as job:
        job.progress(3, 12, "Copying")
        until(lambda: seen(daemon, job).get("progress", {}).get("percent") == 25)
        job.step("Checking")
        until(lambda: seen(daemon, job)["progress"]["step_name"] == "Checking")
        assert seen(daemon, job)["progress"]["current_step"] == 3
        job.progress(percent=66.6)
        until(lambda: seen(daemon, job)["progress"]["percent"] == 66)


def test_a_program_may_know_the_remaining_time(daemon: ServedDaemon) -> None:
    def remaining() -> dict[str, Any]:
        return dict(seen(daemon, job).get("progress", {}).get("eta", {}))

    with Job("train", 10, **to(daemon)) as job:
        job.progress(eta_seconds=10_000)
        job.progress(3)
        until(lambda: remaining().get("from") == "producer")
        assert 10_000 - PATIENCE < remaining()["seconds"] <= 10_000
        job.progress(4, eta_seconds=nan)
        until(lambda: seen(daemon, job)["progress"]["current_step"] == 4)
        assert remaining()["from"] == "producer"
        job.progress(5, eta_seconds=0)
        until(lambda: remaining()["from"] == "rate")


def test_tasks_run_within_a_job(daemon: ServedDaemon) -> None:
    with Job("pull", **to(daemon)) as job:
        job.progress(phase="Layers", unit="B")
        with job.task("Layer 1", 300, unit="B") as first, job.task("Layer 2", 100, unit="B") as second:
            first.advance(100)
            first.advance(50)
            second.progress(total=50, current=50)
            until(lambda: seen(daemon, job).get("progress", {}).get("percent") == 57)
            progress = seen(daemon, job)["progress"]
        assert (progress["phase"], progress["unit"], progress["step_name"]) == ("Layers", "B", "")
        with pytest.raises(OSError, match="disk"), job.task("Layer 1"):
            raise OSError("disk")
    assert progress["tasks"] == [
        {"id": "Layer 1", "name": "Layer 1", "current": 150, "total": 300, "state": "processing", "unit": "B"},
        {"id": "Layer 2", "name": "Layer 2", "current": 50, "total": 50, "state": "processing", "unit": "B"},
    ]
    tasks = seen(daemon, job)["progress"]["tasks"]
    assert sorted((task["id"], task["state"]) for task in tasks) == [("Layer 1", "failed"), ("Layer 2", "completed")]


def test_tasks_beyond_the_limit_are_logged_and_ignored(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    with Job("many", **to(daemon)) as job, ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(job.task("Page", 2)).advance()
        until(lambda: len(seen(daemon, job).get("progress", {}).get("tasks", ())) == 32)
    assert warnings(caplog) == ["many: ignored tasks: a job has at most 32 unfinished tasks"]
    with Job("more", **to(daemon)) as job:
        for number in range(40):
            with job.task(f"Page {number}", 2):
                pass
    tasks = seen(daemon, job)["progress"]["tasks"]
    assert [task["id"] for task in tasks] == [f"Page {number}" for number in range(8, 40)]


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("even this went wrong")


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
        (SystemExit(3), "failed", "the program exited with status 3"),
        (SystemExit(0), "completed", None),
        (KeyboardInterrupt(), "cancelled", None),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, BaseException) else "",
)
def test_an_exception_ends_the_job(
    error: BaseException, ended: str, sentence: str | None, daemon: ServedDaemon
) -> None:
    with pytest.raises(type(error)) as caught, Job("scan", **to(daemon)) as job:
        raise error
    assert caught.value is error
    view = seen(daemon, job)
    assert (view["status"], view.get("error")) == (ended, sentence)


def test_names_that_are_not_utf_8_are_replaced(daemon: ServedDaemon) -> None:
    name = "a\udcff"
    with Job(name, input_filename=name, options={name: [name, "ä"]}, labels={name: name}, **to(daemon)) as job:
        job.step(name)
        job.result(f"https://files.example/{name}")
    view = seen(daemon, job)
    assert (view["status"], view["kind"], view["input_filename"]) == ("completed", "a?", "a?")
    assert view["output_path"] == "https://files.example/a?"
    assert (view["options"], view["labels"]) == ({"a?": ["a?", "ä"]}, {"a?": "a?"})
    assert view["progress"]["step_name"] == "a?"


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
def test_without_a_thread_the_work_continues(body: str, daemon: ServedDaemon) -> None:
    done = subprocess.run(script(daemon, NO_MORE_THREADS + body), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.returncode) == ("done\n", 0)
    assert done.stderr == "scan: can't start new thread; the work continues, but is not reported\n"


@pytest.mark.parametrize(
    ("given", "total"),
    [
        ({"total_steps": -1}, 0),
        ({"total_steps": 2**60}, 2**53),
        ({"total_steps": True}, 1),
        ({"total_steps": 3, "labels": dict.fromkeys(map(str, range(99)), "x")}, 3),
        ({"labels": 3}, 0),
        ({"options": ["x"]}, 0),
        ({"options": {"x": "y" * 70_000}}, 0),
    ],
    ids=["negative", "too large", "bool", "too many labels", "labels", "options", "options too large"],
)
def test_invalid_arguments_do_not_hide_the_job(given: dict[str, Any], total: int, daemon: ServedDaemon) -> None:
    with Job("scan", **given, **to(daemon)) as job:
        pass
    view = seen(daemon, job)
    assert (view["status"], view["progress"]["total_steps"]) == ("completed", total)
    assert (view["options"], view["labels"]) == ({}, {})


def test_invalid_values_are_logged_once(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    strange: dict[str, Any] = {"lease_seconds": nan, "patience": nan, "total_steps": "many", "input_filename": Mute()}
    options: Any = {"lr": nan, ("a", "b"): 1, "optimizer": {"eps": inf, "decay": 0.01}, "seed": 2**64 - 1}
    with Job("scan", options=options, labels={"team": Mute(), "host": "db1"}, **strange, **to(daemon)) as job:
        for _ in range(3):
            job.progress(nan, inf, Mute(), "42 %")  # type: ignore[arg-type]
            job.step(Mute())  # type: ignore[arg-type]
        job.progress(7, percent=Decimal("42.5"))  # type: ignore[arg-type]
        until(lambda: seen(daemon, job).get("progress", {}).get("percent") == 42)
        job.progress(7, 2.5, percent=-1)  # type: ignore[arg-type]
        job.result(Mute(), -1)  # type: ignore[arg-type]
    view = seen(daemon, job)
    assert (view["status"], view["lease_seconds"], view["labels"]) == ("completed", 60.0, {"host": "db1"})
    assert view["options"] == {"optimizer": {"decay": 0.01}, "seed": 2**64 - 1}
    assert (view["progress"]["current_step"], view["progress"]["total_steps"], view["page_count"]) == (7, 2, 0)
    assert warnings(caplog) == [
        "scan: ignored patience: expected 0 or more seconds, not nan",
        "scan: ignored lease_seconds: nan is not a finite number",
        "scan: ignored total_steps: invalid literal for int() with base 10: 'many'",
        "scan: ignored input_filename: even this went wrong",
        "scan: ignored options.lr and 2 more: nan is not a finite number",
        "scan: ignored labels: even this went wrong",
        "scan: ignored current_step: cannot convert float NaN to integer",
        "scan: ignored step_name: even this went wrong",
        "scan: ignored percent: could not convert string to float: '42 %'",
        "scan: ignored output_path: even this went wrong",
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_cancelled_job_stops_at_its_next_report(way: str, daemon: ServedDaemon) -> None:
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


def test_a_silent_job_sees_its_cancellation(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    with Job("scan", stop_when_cancelled=False, **to(daemon)) as job:
        cancel(daemon, job)
        until(lambda: job.cancelled)
        job.step("Tidying up")
    assert (status(daemon, job), warnings(caplog)) == ("cancelled", [])


def test_the_environment_names_the_daemon(daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SOCKET": f"{daemon.state_dir}/ingest.sock", "URL": daemon.url}.items():
        monkeypatch.setenv(f"PROGRESSD_{name}", value)
        with Job("scan") as job:
            pass
        assert status(daemon, job) == "completed"


def test_a_program_of_a_job_reports_that_job(daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_program_renews_the_lease(daemon: ServedDaemon) -> None:
    body = """
import sys, time
with Job("scan", lease_seconds=1, socket=where) as job:
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
                return len(cursors) > 6  # more than two leases, even if each other cursor is that of a stall

            until(renewed)
            assert status(daemon, job) == "processing"
        finally:
            process.kill()
    until(lambda: status(daemon, job) == "failed")
    assert seen(daemon, job)["error"] == "producer lost"
