"""The log of a command under `progressd run`, compared with what the user sees, and `progressd logs`."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.test_run import command, jobs, newest, run
from support.serving import PATIENCE, ServedDaemon, served_daemon
from support.terminal import in_terminal
from support.waiting import until

COUNTING = """
import pathlib, sys, time
for number in range(3000):
    print(f"line {number} ü", flush=True)
    if number % 1000 == 500:
        path = pathlib.Path(sys.argv[1], str(number))
        while not path.exists():
            time.sleep(0.01)
print("the end", end="", flush=True)
"""


def log_of(daemon: ServedDaemon, job_id: str, query: str = "") -> str:
    response = daemon.request("GET", f"/api/jobs/{job_id}/log{query}")
    assert response.status_code == 200, response.text
    return response.text


def logs(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "progressd", "logs", "--url", url, *arguments]


@contextlib.contextmanager
def started(program: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        program, 0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_the_log_has_what_the_user_sees(daemon: ServedDaemon) -> None:
    script = r"printf 'a\n\033[1mbold\033[m\n\n  10%%\r  20%%\r 100%%\nb'; read go; printf 'ü\nend'"
    with subprocess.Popen(
        command(daemon.url, "--", "sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        until(lambda: jobs(daemon) and log_of(daemon, newest(daemon)["id"]).endswith("\nb"))
        shown, _ = process.communicate("\n", PATIENCE)
    job = newest(daemon)["id"]
    shown = shown.replace("  10%\n  20%\n 100%\n", " 100%\n")  # universal newlines
    assert log_of(daemon, job, "?ansi=true") == shown
    assert log_of(daemon, job) == shown.replace("\x1b[1m", "").replace("\x1b[m", "")


def test_the_log_has_both_streams_and_times(daemon: ServedDaemon) -> None:
    writes = command(daemon.url, "--", "sh", "-c", r"printf 'out\n\n'; read go; echo err >&2")
    with subprocess.Popen(
        writes, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until(lambda: jobs(daemon) and log_of(daemon, newest(daemon)["id"]) == "out\n\n")
        process.communicate(b"\n", PATIENCE)
    job = newest(daemon)["id"]
    printed = subprocess.run(logs(daemon.url, "-t", "-n", "1", job[:8]), capture_output=True, check=True, text=True)
    time, line = printed.stdout.split(maxsplit=1)
    assert (time[10], time[-1], line) == ("T", "Z", "err\n")
    assert log_of(daemon, job) == "out\n\nerr\n"


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_a_log_ends_with_a_newline_only_on_a_terminal(daemon: ServedDaemon, options: list[str]) -> None:
    run(daemon.url, "--", "printf", "the end")
    words = logs(daemon.url, *options, newest(daemon)["id"])
    assert subprocess.run(words, capture_output=True, check=True).stdout == b"the end"
    with in_terminal(words) as (_, terminal):
        assert terminal.read_all() == b"the end\r\n"


def test_no_log_is_kept_on_request(daemon: ServedDaemon) -> None:
    run(daemon.url, "--no-log", "--", "echo", "secret")
    assert log_of(daemon, newest(daemon)["id"]) == ""


def test_a_question_is_in_the_log_before_its_answer(daemon: ServedDaemon) -> None:
    asking = command(daemon.url, "--", "sh", "-c", "printf 'Continue? '; read answer; echo $answer")
    with subprocess.Popen(asking, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        until(lambda: jobs(daemon) and log_of(daemon, newest(daemon)["id"]) == "Continue? ")
        process.communicate(b"yes\n", PATIENCE)
    assert log_of(daemon, newest(daemon)["id"]) == "Continue? yes\n"


def test_kills_of_the_daemon_neither_lose_nor_repeat_lines(tmp_path: Path, free_port: int) -> None:
    state, go = tmp_path / "state", tmp_path / "go"
    go.mkdir()
    with contextlib.ExitStack() as stack:
        with served_daemon(state, port=free_port) as daemon:
            counting = command(daemon.url, "--", sys.executable, "-c", COUNTING, str(go))
            process = stack.enter_context(started(counting))
            until(lambda: jobs(daemon) and "line 400 " in log_of(daemon, newest(daemon)["id"]))
            job = newest(daemon)["id"]
            follower = stack.enter_context(started(logs(daemon.url, "-f", job)))
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"line 0 \xc3\xbc\n"
            (go / "500").touch()  # while it writes
            daemon.kill()
        (go / "1500").touch()
        with served_daemon(state, port=free_port) as daemon:
            until(lambda: "line 2400 " in log_of(daemon, job))
            daemon.kill()
        with served_daemon(state, port=free_port) as daemon:
            (go / "2500").touch()
            shown, _ = process.communicate(timeout=PATIENCE)
            assert daemon.completed(job)
            assert log_of(daemon, job).encode() == shown
            assert b"line 0 \xc3\xbc\n" + follower.communicate(timeout=PATIENCE)[0] == shown


def test_a_fast_command_keeps_beginning_and_end(daemon: ServedDaemon) -> None:
    script = "echo first; yes | head -c 60000000; echo last"
    done = run(daemon.url, "--", "sh", "-c", script)
    assert (len(done.stdout), done.stderr) == (60_000_000 + len("first\nlast\n"), "")
    job = newest(daemon)["id"]
    text = log_of(daemon, job)
    assert text.startswith("first\ny\n")
    assert text.endswith("y\nlast\n")
    missing = [line for line in text.splitlines() if line not in ("first", "y", "last")]
    assert 1 <= len(missing) < 100
    assert all(line.startswith("[progressd: ") or set(line) <= {"y"} for line in missing)
    assert sum(path.stat().st_size for path in (daemon.state_dir / "jobs" / job / "log").iterdir()) <= 4 << 20


def last_frames(text: bytes) -> list[bytes]:
    """Return what each line shows in the end. A silent program also has an earlier frame in its log."""
    return [line.rpartition(b"\r")[2] for line in text.split(b"\n")]


def test_pytest_under_run_has_the_same_log(daemon: ServedDaemon, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.parametrize('n', range(50))\ndef test(n): pass\n")
    tests = (sys.executable, "-m", "pytest", "-v", "--color=yes", "-p", "no:cacheprovider", str(tmp_path))
    done = subprocess.run(command(daemon.url, "--", *tests), capture_output=True, check=True)
    log = daemon.request("GET", f"/api/jobs/{newest(daemon)['id']}/log?ansi=true").content
    assert last_frames(log) == last_frames(done.stdout)


@pytest.mark.parametrize("follow", [(), ("-f",)])
def test_an_unknown_job_is_an_error(follow: tuple[str, ...], daemon: ServedDaemon) -> None:
    done = subprocess.run(
        logs(daemon.url, *follow, "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "Error: no job 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c\n")
