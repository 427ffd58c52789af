"""`Job` in programs that fork, pickle, exit, are interrupted, or use it wrongly."""

import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from progressd.client import Job, JobCancelled
from support.reporting import WAYS, place, request, seen, status, to, warnings
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until


@contextlib.contextmanager
def script(daemon: ServedDaemon, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that uses `Job` and knows the socket as `where`."""
    code = f"from progressd.client import Job\nwhere = {place(daemon, 'socket')!r}\n{body}"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-W", "error", "-c", code], text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def run(daemon: ServedDaemon, body: str) -> str:
    """Return what a program prints that succeeds without warnings."""
    with script(daemon, body) as process:
        printed, errors = process.communicate(timeout=PATIENCE)
    assert (errors, process.returncode) == ("", 0)
    return printed.strip()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda job: pickle.loads(pickle.dumps(job))])
def test_a_copy_of_a_running_job_reports_nothing(
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
    assert len(warnings(caplog)) == 1


def test_a_job_may_begin_in_another_process(daemon: ServedDaemon) -> None:
    job = Job("scan", 3, **to(daemon))
    job.progress(1)
    code = "import pickle, sys\nwith pickle.load(sys.stdin.buffer) as job:\n    job.step('Elsewhere')"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(job), timeout=PATIENCE, check=True)
    view = seen(daemon, job)
    assert (view["status"], view["progress"]["current_step"]) == ("completed", 2)
    assert view["progress"]["step_name"] == "Elsewhere"


def test_a_job_may_begin_in_a_fork(daemon: ServedDaemon) -> None:
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


def test_a_fork_reports_nothing_and_ends_nothing(daemon: ServedDaemon) -> None:
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
    with script(daemon, body) as process:
        printed, _ = process.communicate(timeout=PATIENCE)
    view = seen(daemon, printed.strip())
    assert (view["status"], view["progress"]["step_name"]) == ("completed", "")


def test_a_fork_during_a_report_does_not_block(daemon: ServedDaemon) -> None:
    body = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
with Job("scan", socket=where) as job:
    with job._reporter._changed:  # as the thread may at that moment
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
def test_the_thread_imports_nothing(way: str, daemon: ServedDaemon) -> None:
    """A fork during an import would have half of the module."""
    where = place(daemon, way).replace("127.0.0.1", "localhost")
    body = f"""
import sys
job = Job("scan", {way}={where!r})
job.__enter__()
imported = set(sys.modules)
print(job.id, flush=True)
sys.stdin.read()
job.__exit__(None, None, None)
print(*set(sys.modules) - imported)
"""
    with script(daemon, body) as process:
        assert process.stdout is not None
        job = process.stdout.readline().strip()
        until(lambda: status(daemon, job) == "processing")
        assert process.communicate(timeout=PATIENCE) == ("\n", "")


def test_a_job_is_used_once(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    with Job("scan", **to(daemon)) as job:
        pass
    job.step("Too late")
    with pytest.raises(ZeroDivisionError), job:
        job.step(f"{1 / 0}")
    assert status(daemon, job) == "completed"
    assert warnings(caplog) == ["scan: this block is not reported: a Job can be used only once (create a new Job)"]


def test_a_finished_job_raises_no_cancellation(daemon: ServedDaemon) -> None:
    with contextlib.suppress(JobCancelled), Job("scan", **to(daemon)) as job:
        until(lambda: status(daemon, job) == "processing")
        assert request(daemon, "DELETE", job).is_success
        until(lambda: job.cancelled)
        job.step("Looking")
        pytest.fail("it should not go on")
    job.step("Tidying up")


def test_threads_share_a_step_count(daemon: ServedDaemon) -> None:
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


def test_an_interrupt_at_the_start_cancels_the_job(daemon: ServedDaemon) -> None:
    def interrupt(*_: object) -> None:
        if any(thread.name == "progressd: interrupted" and thread.ident for thread in threading.enumerate()):
            raise KeyboardInterrupt

    job = Job("interrupted", **to(daemon))
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            job.__enter__()
    finally:
        sys.setprofile(None)
    until(lambda: status(daemon, job) == "cancelled")


def test_a_signal_ends_the_wait_for_the_daemon(daemon: ServedDaemon) -> None:
    def leave(*_: object) -> None:
        if job._ended:  # otherwise the block is still running
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise SystemExit(3)

    before = signal.signal(signal.SIGALRM, leave)
    begun = time.monotonic()
    try:
        with contextlib.suppress(SystemExit), Job("scan", patience=1000, **to(daemon)) as job:
            until(lambda: status(daemon, job) == "processing")
            daemon.process.send_signal(signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        assert time.monotonic() - begun < PATIENCE
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        daemon.process.send_signal(signal.SIGCONT)
        signal.signal(signal.SIGALRM, before)


def test_a_dropped_generator_cancels_its_job(daemon: ServedDaemon) -> None:
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
def test_a_program_may_exit_during_a_job(end: str, daemon: ServedDaemon) -> None:
    body = f"""
import os, signal, sys
def pages():
    with Job("scan", socket=where) as job:
        yield job
generator = pages()
print(next(generator).id, flush=True)
sys.stdin.read()
sys.keep = generator  # until the interpreter has gone
{end}
"""
    with script(daemon, body) as process:
        assert process.stdout is not None
        job = process.stdout.readline().strip()
        until(lambda: status(daemon, job) == "processing")
        assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == (-signal.SIGKILL if "KILL" in end else 0)
    assert status(daemon, job) in ("processing", "cancelled")


def test_an_invalid_environment_job_id_is_logged(
    daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROGRESSD_JOB_ID", os.fsdecode(b"no\xffid"))
    with Job("scan", **to(daemon)) as job:
        job.step()
        until(lambda: warnings(caplog))
    assert len(warnings(caplog)) == 1
