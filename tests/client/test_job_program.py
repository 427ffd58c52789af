"""`Job` in all that programs do besides: they fork, pickle, end, are interrupted, and use it wrongly."""

import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest
from progressd.client import Job, JobCancelled
from support.reporting import WAYS, complaints, request, seen, status, to
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def daemon(served: ServedDaemon) -> ServedDaemon:
    return served


def run(daemon: ServedDaemon, body: str) -> str:
    """What a program writes that ends well and complains of nothing."""
    where = str(daemon.state_dir / "ingest.sock")
    begin = f"from progressd.client import Job\nwhere = {where!r}\n{body}"
    program = [sys.executable, "-W", "error", "-c", begin]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.strip()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda job: pickle.loads(pickle.dumps(job))])
def test_a_copy_of_a_job_reports_nothing_and_disturbs_nothing(
    copied: object, daemon: ServedDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(copied)
    with Job("scan", options={"dpi": 300}, key="pgd_secret", **to(daemon)) as job:
        other = copied(job)
        other.step("In the copy")
        with other:
            other.progress(5)
        assert b"pgd_secret" not in pickle.dumps(other)
        job.step("Here")
    assert (seen(daemon, job)["progress"]["step_name"], status(daemon, job)) == ("Here", "completed")
    assert len(complaints(caplog)) == 1


def test_a_job_may_begin_in_another_process_than_it_was_made_in(daemon: ServedDaemon) -> None:
    job = Job("scan", 3, **to(daemon))
    job.progress(1)
    code = "import pickle, sys\nwith pickle.load(sys.stdin.buffer) as job:\n    job.step('Elsewhere')"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(job), timeout=PATIENCE, check=True)
    view = seen(daemon, job)
    assert (view["status"], view["progress"]["current_step"], view["progress"]["step_name"]) == (
        "completed",
        2,
        "Elsewhere",
    )


def test_a_job_may_begin_in_a_fork_of_the_program(daemon: ServedDaemon) -> None:
    body = """
import os
job = Job("scan", socket=where)
if (child := os.fork()) == 0:
    with job:
        job.step("In the fork")
    os._exit(0)
os.waitpid(child, 0)
print(job.id)
"""
    view = seen(daemon, run(daemon, body))
    assert (view["status"], view["progress"]["step_name"]) == ("completed", "In the fork")


def test_a_fork_while_the_thread_reports_is_not_held_up(daemon: ServedDaemon) -> None:
    body = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
with Job("scan", socket=where) as job:
    with job._reporter._changed:  # as the thread may have at that moment
        if (child := os.fork()) == 0:
            job.step("In the fork")
            with Job("inner", socket=where) as inner:
                inner.step()
            os._exit(0)
    os.waitpid(child, 0)
print(job.id)
"""
    assert status(daemon, run(daemon, body)) == "completed"


@pytest.mark.parametrize("way", WAYS)
def test_the_thread_imports_nothing_that_a_fork_would_have_half_of(way: str, daemon: ServedDaemon) -> None:
    [(name, where)] = to(daemon, way).items()
    body = f"""
import sys
job = Job("scan", {name}={str(where)!r}.replace("127.0.0.1", "localhost"))
job.__enter__()
imported = set(sys.modules)
while not job._reporter._answered:
    pass
job.__exit__(None, None, None)
print(*set(sys.modules) - imported)
"""
    assert run(daemon, body) == ""


def test_a_block_may_end_while_a_thread_imports_an_event_loop(
    daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Job("scan", **to(daemon)) as job:
        for library in ("trio", "asyncio"):
            monkeypatch.setitem(sys.modules, library, ModuleType(library))
    monkeypatch.undo()
    assert status(daemon, job) == "completed"


def test_a_job_that_has_ended_is_no_trouble(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    with Job("scan", **to(daemon)) as job:
        pass
    job.step("Too late")
    with pytest.raises(ZeroDivisionError), job:
        job.step(f"{1 / 0}")
    assert status(daemon, job) == "completed"
    assert complaints(caplog) == ["scan: this Job was used before; nothing of this block is reported: make another Job"]


def test_a_cancellation_is_not_raised_after_the_block(daemon: ServedDaemon) -> None:
    with contextlib.suppress(JobCancelled), Job("scan", **to(daemon)) as job:
        until(lambda: status(daemon, job) == "processing")
        assert request(daemon, "DELETE", job).is_success
        until(lambda: job.cancelled)
        job.step("Looking")
        pytest.fail("it should not go on")
    job.step("Tidying up")


def test_two_jobs_at_once_are_told_apart(daemon: ServedDaemon) -> None:
    with Job("outer", **to(daemon)) as outer, Job("inner", **to(daemon, "url")) as inner:
        outer.step("Outer")
        inner.step("Inner")
    assert [seen(daemon, job)["progress"]["step_name"] for job in (outer, inner)] == ["Outer", "Inner"]


def test_steps_are_counted_by_several_threads(daemon: ServedDaemon) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Job("scan", **to(daemon)) as job:
            threads = [threading.Thread(target=lambda: [job.step() for _ in range(2000)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert seen(daemon, job)["progress"]["current_step"] == 8000


def test_a_signal_handler_may_report(daemon: ServedDaemon) -> None:
    job = Job("scan", **to(daemon))
    before = signal.signal(signal.SIGALRM, lambda *_: job.step("From the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with job:
            for _ in range(5000):
                job.step("Page")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen(daemon, job)["progress"]["current_step"] >= 5000


def test_a_block_that_a_signal_keeps_from_beginning_is_a_cancelled_job(daemon: ServedDaemon) -> None:
    def interrupt(*_: object) -> None:
        if job._reporter is not None and job._reporter._thread.ident is not None:
            raise KeyboardInterrupt

    job = Job("scan", **to(daemon))
    sys.setprofile(interrupt)
    try:
        job.__enter__()
    except KeyboardInterrupt:
        sys.setprofile(None)
    else:
        sys.setprofile(None)
        pytest.fail("it was not interrupted")
    until(lambda: status(daemon, job) == "cancelled")


def test_a_signal_cuts_the_wait_for_the_end_short(daemon: ServedDaemon) -> None:
    def leave(*_: object) -> None:
        raise SystemExit(3)

    before = signal.signal(signal.SIGALRM, leave)
    try:
        with contextlib.suppress(SystemExit), Job("scan", patience=1000, **to(daemon)) as job:
            until(lambda: status(daemon, job) == "processing")
            daemon.process.send_signal(signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert job._reporter is not None
        assert job._reporter._finished.is_set()
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        signal.signal(signal.SIGALRM, before)


def test_a_generator_that_is_dropped_is_a_cancelled_job(daemon: ServedDaemon) -> None:
    jobs = []

    def pages() -> Iterator[int]:
        with Job("scan", **to(daemon)) as job:
            jobs.append(job)
            yield 1
            yield 2

    for _ in pages():
        break
    assert status(daemon, jobs[0]) == "cancelled"


@pytest.mark.parametrize("end", ["", "sys.exit()", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_program_ends_with_a_job_left_open(end: str, daemon: ServedDaemon) -> None:
    body = f"""
import os, signal, sys, time
def pages():
    with Job("scan", socket=where) as job:
        yield job
generator = pages()
job = next(generator)
while not job._reporter._answered:
    time.sleep(0.01)
print(job.id, flush=True)
sys.keep = generator  # until the interpreter has gone
{end}
"""
    where = str(daemon.state_dir / "ingest.sock")
    program = [sys.executable, "-W", "error", "-c", f"from progressd.client import Job\nwhere = {where!r}\n{body}"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stderr, done.returncode) == ("", -signal.SIGKILL if "KILL" in end else 0)
    assert status(daemon, done.stdout.strip()) in ("processing", "cancelled")


def test_an_id_from_the_environment_that_is_none_is_no_trouble(
    daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROGRESSD_JOB_ID", os.fsdecode(b"no\xffid"))
    with Job("scan", **to(daemon)) as job:
        job.step()
        assert job._reporter is not None
        until(job._reporter._finished.is_set)
    assert len(complaints(caplog)) == 1
