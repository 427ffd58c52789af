"""`progressd run` with and without a daemon."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.cgroups import FORKING, delegated, entering
from support.cli import PROGRESSD, program, started
from support.serving import PATIENCE, ServedDaemon, backup, restore, served_daemon
from support.terminal import in_terminal
from support.waiting import alive, until

NOBODY = "http://127.0.0.1:1"
WAITS = "import sys, time; print('ready', flush=True); time.sleep(1000)"


def command(url: str, *arguments: str) -> list[str]:
    return [*PROGRESSD, "run", "--url", url, *arguments]


def run(url: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return program("run", "--url", url, *arguments, given=given)


@contextlib.contextmanager
def running(url: str, *arguments: str, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run a command until it has printed `ready`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*before, *command(url, *arguments)], text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert "ready\n" in iter(process.stdout.readline, "")
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def below(pid: int) -> set[int]:
    """Return the descendants of a process."""
    found = set[int]()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in path.read_text().split():
                found |= {int(child)} | below(int(child))
    return found


def jobs(daemon: ServedDaemon) -> list[dict[str, Any]]:
    """Return the newest job, if any."""
    answer = daemon.request("GET", "/api/jobs?limit=1")
    found: list[dict[str, Any]] = answer.json()["jobs"]
    return found


def newest(daemon: ServedDaemon) -> dict[str, Any]:
    return jobs(daemon)[0]


def test_a_command_keeps_its_input_output_and_status(daemon: ServedDaemon) -> None:
    done = run(daemon.url, "--label", "host=db1", "--", "sh", "-c", "cat; echo no >&2; exit 3", given="text\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "text\n", "no\n")
    job = newest(daemon)
    assert (job["status"], job["error"]) == ("failed", "sh failed with exit status 3: no")
    assert (job["kind"], job["lease_seconds"]) == ("sh", 60.0)
    assert job["name"] == "sh -c 'cat; echo no >&2; exit 3'"
    assert (job["labels"]["host"], "user" in job["labels"]) == ("db1", True)


@pytest.mark.parametrize("pattern", [(), ("-p", "(?P<percent>[0-9]+)%")])
def test_a_command_inherits_only_the_given_files(pattern: Sequence[str], daemon: ServedDaemon) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"given")
    os.close(writing)
    try:
        words = command(daemon.url, *pattern, "--", "sh", "-c", f"cat /dev/fd/{reading}; echo; ls /proc/$$/fd")
        done = subprocess.run(words, pass_fds=[reading], capture_output=True, text=True, timeout=PATIENCE, check=False)
    finally:
        os.close(reading)
    given, *descriptors = done.stdout.split()
    assert given == "given"
    assert sorted(map(int, descriptors)) == [0, 1, 2, reading]


def test_a_command_may_report_and_leave_processes(daemon: ServedDaemon) -> None:
    emit = f"{sys.executable} -m progressd emit --step 7 --total 9 Seven"
    done = run(daemon.url, "--name", "nightly", "--", "sh", "-c", f"{emit}; sleep 1000 > /dev/null 2>&1 & echo $!")
    assert (done.returncode, done.stderr) == (0, "")
    assert alive(int(done.stdout))
    os.kill(int(done.stdout), signal.SIGKILL)
    job = newest(daemon)
    assert (job["status"], job["name"], job["progress"]["step_name"]) == ("completed", "nightly", "Seven")
    assert job["elapsed_seconds"] > 0


RARELY = """
from progressd.cli.entry import main
from progressd.client.run import reporter
reporter.REPORT_INTERVAL = 3600.0
main()
"""


def test_progress_in_a_silence_is_reported_at_once(daemon: ServedDaemon) -> None:
    script = "echo 1/3; read x; printf 2/3; read x"
    options = ["run", "--url", daemon.url, "--name", "silent", "-p", r"(?P<current>\d)/(?P<total>\d)", "--"]
    words = [sys.executable, "-c", RARELY, *options, "sh", "-c", script]

    def shows(step: int) -> bool:
        return any(job["name"] == "silent" and job["progress"]["current_step"] == step for job in jobs(daemon))

    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        until(lambda: shows(1))
        process.stdin.write(b"\n")
        process.stdin.flush()
        until(lambda: shows(2))
        process.stdin.close()


def test_a_daemon_that_limits_requests_receives_fewer_reports(tmp_path: Path) -> None:
    config = "[limits]\nexempt_addresses = []\nrate_limit_burst = 3\n"
    script = "for n in $(seq 30); do echo $n/99; sleep 0.1; done"
    with served_daemon(tmp_path / "state", config=config) as daemon:
        done = run(daemon.url, "--no-log", "-p", r"(?P<current>\d+)/(?P<total>\d+)", "--", "sh", "-c", script)
        assert (done.returncode, done.stderr) == (0, "")
        job: dict[str, Any] = {}
        until(lambda: job.update(daemon.request("GET", "/api/jobs?limit=1").json()) or "jobs" in job)
    assert job["jobs"][0]["status"] == "completed"
    assert job["jobs"][0]["progress"]["total_steps"] == 99


def test_a_job_is_registered_once_the_daemon_accepts_requests_again(tmp_path: Path) -> None:
    config = "[limits]\nexempt_addresses = []\nrate_limit_burst = 3\n"
    with served_daemon(tmp_path / "state", config=config) as daemon:
        until(lambda: daemon.request("GET", "/api/jobs").status_code == 429)
        done = run(daemon.url, "--no-log", "--", "true")
        assert (done.returncode, done.stderr) == (0, "")
        found: dict[str, Any] = {}
        until(lambda: found.update(daemon.request("GET", "/api/jobs").json()) or "jobs" in found)
    assert [job["status"] for job in found["jobs"]] == ["completed"]


def test_output_is_searched_for_progress_and_passed_on(daemon: ServedDaemon) -> None:
    pattern = r"(?P<current>\d+)/(?P<total>\d+) (?P<step>\w+)"
    done = run(daemon.url, "-p", pattern, "--", "sh", "-c", "printf '1/4 one\\r'; echo 3/4 three; printf '2/4 two' >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1/4 one\n3/4 three\n", "2/4 two")  # \r is \n in text
    progress = newest(daemon)["progress"]
    assert (progress["total_steps"], progress["current_step"] in (2, 3)) == (4, True)


@pytest.mark.parametrize("frame", ["\\r3/5", "\\n3/5\\r", "\\033[2K\\r3/5"])
def test_progress_is_seen_while_the_command_waits(frame: str, daemon: ServedDaemon, tmp_path: Path) -> None:
    waits = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"
    with running(
        daemon.url, "--", "sh", "-c", f"echo ready; printf '\\r1/5\\r2/5'; {waits}; printf '{frame}'; sleep 1000"
    ):
        until(lambda: newest(daemon)["progress"]["percent"] == 40)
        (tmp_path / "go").touch()
        until(lambda: newest(daemon)["progress"]["percent"] == 60)


def test_the_position_in_a_file_is_an_estimate(daemon: ServedDaemon, tmp_path: Path) -> None:
    with open(tmp_path / "data", "wb") as data:
        data.truncate(1 << 30)
    reads = "import sys, time\nprint('ready', flush=True)\nwhile sys.stdin.buffer.read(1 << 18): time.sleep(0.05)"
    with open(tmp_path / "data", "rb") as data:
        words = command(daemon.url, "-v", "--", sys.executable, "-c", reads)
        with started(words, stdin=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            until(lambda: jobs(daemon) and newest(daemon)["progress"]["step_name"] == "Reading data (estimate)")
            process.terminate()
            said = process.communicate(timeout=PATIENCE)[1]
    assert newest(daemon)["progress"]["total_steps"] == 1 << 30
    assert said == "progressd: progress from: the position in the file that it reads (estimate)\n"


def test_the_last_lines_of_stderr_are_in_the_error(daemon: ServedDaemon) -> None:
    script = "echo no >&2; printf '\\033[31mlink_stat \"/x\" failed\\033[0m\\n  detail\\nrsync error\\n' >&2; exit 23"
    run(daemon.url, "--", "sh", "-c", script)
    assert newest(daemon)["error"] == 'sh failed with exit status 23: no; link_stat "/x" failed; rsync error'


def test_a_preset_is_explained_and_noted(daemon: ServedDaemon, tmp_path: Path) -> None:
    told = run(NOBODY, "--explain", "--", "rsync", "-a", "a", "b")
    assert (told.returncode, told.stdout.splitlines()[0]) == (0, "progress from: rsync")
    assert run(NOBODY, "--explain", "--no-adapt", "--", "rsync", "-a", "a", "b").stdout == "progress from: rsync\n"
    unknown = run(NOBODY, "--explain", "--", "./backup.sh")
    assert (unknown.returncode, unknown.stderr) == (127, "progressd: ./backup.sh: there is no such program\n")
    assert "no preset" in unknown.stdout
    assert run(daemon.url, "-v", "--as", "rsync", "--", "true").stderr == "progressd: progress from: nowhere\n"
    assert newest(daemon)["options"] == {"progress_from": "rsync"}
    assert "xyz" in run(NOBODY, "--as", "xyz", "--", "true").stderr


def test_a_command_may_keep_our_streams(daemon: ServedDaemon) -> None:
    with subprocess.Popen(
        command(daemon.url, "--as", "none", "--", "readlink", "/proc/self/fd/1"), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        ours = os.readlink(f"/proc/self/fd/{process.stdout.fileno()}")
        assert process.stdout.read().decode() == f"{ours}\n"


def test_a_command_that_cannot_start_fails_the_job(daemon: ServedDaemon) -> None:
    done = run(daemon.url, "/no/such/program")
    assert (done.returncode, done.stderr) == (127, "progressd: /no/such/program: No such file or directory\n")
    assert newest(daemon)["error"] == "/no/such/program cannot be started: No such file or directory"


def test_commands_and_names_need_not_be_text(daemon: ServedDaemon, tmp_path: Path) -> None:
    program = tmp_path / "caf\udce9"
    program.write_text("#!/bin/sh\necho done; exit 3\n")
    program.chmod(0o755)
    done = run(daemon.url, "--label", "host=caf\udce9", "--", str(program))
    assert (done.returncode, done.stdout) == (3, "done\n")
    job = newest(daemon)
    assert (job["kind"], job["labels"]["host"]) == ("caf?", "caf?")
    assert job["error"] == f"{tmp_path}/caf? failed with exit status 3"
    assert run(daemon.url, "--name", "\udce9" + "n" * 300, "--", "true").returncode == 0
    assert newest(daemon)["name"] == "?" + "n" * 253 + "…"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_reaches_the_command(number: signal.Signals, daemon: ServedDaemon) -> None:
    with running(daemon.url, "--", sys.executable, "-c", WAITS) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    assert newest(daemon)["error"] == f"{sys.executable} was killed by {number.name}"


@pytest.mark.parametrize(
    ("handler", "status", "kill"),
    [("", 128 + signal.SIGINT, os.killpg), ("import signal; signal.signal(2, lambda *_: sys.exit(7))", 7, os.kill)],
)
def test_an_interrupt_cancels_the_job(
    handler: str, status: int, kill: Callable[[int, int], None], daemon: ServedDaemon
) -> None:
    program = f"import sys; {handler}\n{WAITS}"
    with running(daemon.url, "--", sys.executable, "-c", program) as process:
        kill(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == status
    assert newest(daemon)["status"] == "cancelled"


def test_a_command_may_survive_ctrl_backslash(daemon: ServedDaemon, tmp_path: Path) -> None:
    handler = "import os, signal, sys, time; signal.signal(signal.SIGQUIT, lambda *_: print('dump', flush=True))"
    program = f"{handler}; print('ready', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)"
    with in_terminal(command(daemon.url, "--", sys.executable, "-c", program, str(tmp_path / "over"))) as (
        process,
        terminal,
    ):
        terminal.read(b"ready")
        terminal.type(b"\x1c")
        terminal.read(b"dump")
        (tmp_path / "over").touch()
        assert process.wait(PATIENCE) == 0
    assert newest(daemon)["status"] == "completed"


def test_an_interrupt_at_the_end_cancels_the_job(daemon: ServedDaemon) -> None:
    late = """
import signal
from progressd.cli.main import main
from progressd.system.reaper import Reaper

ended = Reaper.status_of

async def status_of(reaper, pid):
    status = await ended(reaper, pid)
    signal.raise_signal(signal.SIGINT)
    return status

Reaper.status_of = status_of
main()
"""
    call = [sys.executable, "-c", late, *command(daemon.url, "--", "sh", "-c", "exit 7")[3:]]
    done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert newest(daemon)["status"] == "cancelled"


def test_a_broken_pipe_reaches_the_command(daemon: ServedDaemon) -> None:
    program = ("--", "sh", "-c", "echo ready; read go; echo 1/2; while :; do echo 2/2; done")
    arguments = command(daemon.url, "-p", r"(?P<current>\d)/(?P<total>\d)", *program)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(arguments, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
    assert newest(daemon)["error"] == "sh was killed by SIGPIPE"


def test_a_slow_reader_receives_all_output(tmp_path: Path) -> None:
    lines = [
        "from progressd.cli.main import main",
        "from progressd.client.run import output",
        "output.PIPE_TIMEOUT = 0",
        "main()",
    ]
    impatient = "\n".join(lines)
    size = 65_500  # more than we take at once and our output holds, and no more than that of the command does
    program = ("sh", "-c", f"head -c {size} /dev/zero; : > {tmp_path}/ended")
    call = [sys.executable, "-c", impatient, *command(NOBODY, "-p", "(?P<percent>[0-9]+)%", "--", *program)[3:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "pipesize": 4096}
    with subprocess.Popen(call, **pipes) as process:  # type: ignore[call-overload]
        until((tmp_path / "ended").exists)
        ended = time.monotonic()
        until(lambda: time.monotonic() > ended + 0.5)
        written, _ = process.communicate(timeout=PATIENCE)
    assert len(written) == size


def test_a_nonblocking_stdout_receives_all_output() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    size = 1_000_000
    words = command(NOBODY, "-p", "(?P<percent>[0-9]+)%", "--", "head", "-c", str(size), "/dev/zero")
    with subprocess.Popen(words, stdout=writing, stderr=subprocess.PIPE) as process, open(reading, "rb") as output:
        os.close(writing)
        assert len(output.read()) == size
        assert process.wait(PATIENCE) == 0


def test_a_background_process_does_not_delay_the_end(daemon: ServedDaemon) -> None:
    program = ("sh", "-c", "while :; do echo tick; sleep 0.05; done & echo 42%; exit 0")
    done = run(daemon.url, "-p", "(?P<percent>[0-9]+)%", "--", *program)
    assert done.returncode == 0
    assert {"42%"} <= set(done.stdout.split()) <= {"42%", "tick"}
    assert newest(daemon)["status"] == "completed"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes a command of another user")
def test_a_command_of_another_user_is_not_signalled(daemon: ServedDaemon) -> None:
    other = ("setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo $$; read go; exit 3")
    restricted = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", *command(daemon.url, "--", *other)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(restricted, text=True, **pipes) as process:  # type: ignore[call-overload]
        process_of_other = process.stdout.readline().strip()
        process.terminate()
        said = process.stderr.readline()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 3
    assert said == f"progressd: not permitted to send SIGTERM to {process_of_other} (sh, user nobody)\n"
    assert newest(daemon)["error"] == "setpriv failed with exit status 3"


def test_a_cancellation_ends_the_command(daemon: ServedDaemon) -> None:
    with running(daemon.url, "--", sys.executable, "-c", WAITS) as process:
        job = newest(daemon)
        assert job["status"] == "processing"
        cancel(daemon)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.stderr is not None
        said = process.stderr.read()
    stopping = f"progressd: job {job['id']} was cancelled: stopping the command\n"
    assert said == f"{stopping}progressd: ended 1 process of the command\n"
    assert newest(daemon)["status"] == "cancelled"


def test_a_cancelled_command_leaves_no_process_in_its_cgroup(daemon: ServedDaemon) -> None:
    script = '(env -i setsid "$0" -c "$1" &); sleep 1000'
    with delegated() as cgroup:
        arguments = ["--", "sh", "-c", script, sys.executable, f"print('ready')\n{FORKING}"]
        with running(daemon.url, *arguments, before=entering(cgroup)) as process:
            [below] = Path(cgroup.entrance).parent.glob("progressd-run-*")
            cancel(daemon)
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM
            assert process.stderr is not None
            assert "progressd: ended " in process.stderr.read()
        assert not cgroup.is_populated()
        assert not below.exists()


SCRIPT = """
timeout 1000 sleep 1000 &
setsid sleep 1000 &
(env -i setsid sleep 1000 &)
sleep 1000 &
echo ready
sleep 1000
exit 0
"""


def script_of(process: subprocess.Popen[str]) -> set[int]:
    """Return the processes of the script, once all run."""
    until(lambda: len(below(process.pid)) == 7)
    return below(process.pid)


def cancel(daemon: ServedDaemon) -> None:
    assert daemon.request("DELETE", f"/api/jobs/{newest(daemon)['id']}").is_success


@pytest.mark.parametrize("how", ["cancelled", "SIGHUP", "SIGINT"])
def test_stopping_a_script_ends_all_its_processes(how: str, daemon: ServedDaemon) -> None:
    with running(daemon.url, "--", "sh", "-c", SCRIPT) as process:
        pids = script_of(process)
        if how == "cancelled":
            cancel(daemon)
        else:
            process.send_signal(signal.Signals[how])
        number = signal.SIGTERM if how == "cancelled" else signal.Signals[how]
        assert process.wait(PATIENCE) == 128 + number
        assert not [pid for pid in pids if alive(pid)]
        assert process.stderr is not None
        said = re.search(r"ended (\d+) processes of the command", process.stderr.read())
        assert (said is not None and int(said[1]) >= len(pids)) is (how == "cancelled")


def test_every_process_has_the_kill_grace(daemon: ServedDaemon, tmp_path: Path) -> None:
    clean_up = f"echo asked; until [ -e {tmp_path}/go ]; do sleep 0.01; done; touch {tmp_path}/cleaned; exit"
    slow = f"trap '{clean_up}' TERM; echo ready; while :; do sleep 0.01; done"
    with running(daemon.url, "--", "sh", "-c", f'setsid sh -c "{slow}" & wait') as process:
        process.terminate()
        assert process.stdout is not None
        assert "asked\n" in iter(process.stdout.readline, "")
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert (tmp_path / "cleaned").exists()


def test_ctrl_c_reaches_every_process_once(daemon: ServedDaemon, tmp_path: Path) -> None:
    counts = "import os, signal, sys, time\nsignal.signal(2, lambda *_: os.write(1, b'x'))\nprint('on', flush=True)\n"
    (tmp_path / "count.py").write_text(
        f"{counts}time.sleep(1000) if sys.argv[1] == 'out' else signal.pause()\n"
        f"while not open('{tmp_path}/out').read().endswith('x'): time.sleep(0.01)\nsys.exit(7)"
    )
    python = f"{sys.executable} {tmp_path}/count.py"
    script = f"setsid {python} out > {tmp_path}/out & {python} in > {tmp_path}/in"
    with in_terminal(command(daemon.url, "--", "sh", "-c", f"trap 'exit 5' INT; {script}; exit 6")) as (
        process,
        terminal,
    ):
        until(
            lambda: (
                [(tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("out", "in")] == ["on\n"] * 2
            )
        )
        terminal.type(b"\x03")
        assert process.wait(PATIENCE) == 5
    assert [(tmp_path / name).read_text() for name in ("out", "in")] == ["on\nx"] * 2
    assert newest(daemon)["status"] == "cancelled"


def test_a_command_under_nohup_ignores_sighup(daemon: ServedDaemon) -> None:
    program = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    with running(daemon.url, "--", "sh", "-c", program, before=["nohup"]) as process:
        os.killpg(process.pid, signal.SIGHUP)
        process.terminate()
        assert process.wait(PATIENCE) == 3


def test_a_command_may_end_its_job_early(daemon: ServedDaemon) -> None:
    emit = f"{sys.executable} -m progressd emit --completed"
    done = run(daemon.url, "--", "sh", "-c", f"{emit}; echo cleaned up")
    assert (done.returncode, done.stdout, done.stderr) == (0, "cleaned up\n", "")
    assert newest(daemon)["status"] == "completed"


@pytest.mark.parametrize("runs_on", [False, True])
def test_a_lost_job_is_reported_on_stderr(runs_on: bool, daemon: ServedDaemon, tmp_path: Path) -> None:
    post = "curl -sf $PROGRESSD_URL/api/jobs/$PROGRESSD_JOB_ID/events -d"
    lost = '{"type": "error", "data": {"message": "producer lost"}}'
    waits = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; exit 4"
    if not runs_on:
        (tmp_path / "go").touch()
    with running(daemon.url, "--", "sh", "-c", f"{post} '{lost}' > /dev/null; echo ready; {waits}") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == 4
        assert process.stderr.read() == ""
    failed = f"progressd: job {newest(daemon)['id']} has failed: nothing was reported for too long"
    assert said in (f"{failed}; the command continues\n", *([] if runs_on else [f"{failed}\n"]))


def test_a_command_runs_without_a_daemon() -> None:
    done = run(NOBODY, "--", "sh", "-c", "echo done; exit 4")
    assert (done.returncode, done.stdout) == (4, "done\n")
    assert done.stderr == f"progressd: no daemon answers at {NOBODY}; start one with: progressd serve\n"


@pytest.mark.parametrize("broken", ["full", "pipe"])
def test_it_runs_though_nobody_reads_its_messages(broken: str) -> None:
    with open("/dev/full", "w") as full:
        reading, writing = os.pipe()
        os.close(reading)
        stderr = full if broken == "full" else writing
        words = command(NOBODY, "--", "sh", "-c", "echo done; exit 4")
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=PATIENCE, check=False)
        os.close(writing)
    assert (done.returncode, done.stdout) == (4, "done\n")


def test_an_unwritable_cancellation_ends_the_command(daemon: ServedDaemon) -> None:
    words = ["sh", "-c", 'exec "$0" "$@" 2>/dev/full', *command(daemon.url, "--", sys.executable, "-c", WAITS)]
    with started(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        [child] = below(process.pid)
        cancel(daemon)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not alive(child)


def hears(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << number - 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prevents_the_start(number: signal.Signals, tmp_path: Path, daemon: ServedDaemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        with started(command(daemon.url, "--", "touch", f"{tmp_path}/began")) as process:
            until(lambda: hears(process.pid, signal.SIGTERM))
            process.send_signal(number)
            daemon.process.send_signal(signal.SIGCONT)
            assert process.wait(PATIENCE) == 128 + number
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert newest(daemon)["status"] == "cancelled"
    assert not (tmp_path / "began").exists()


def test_a_signal_ends_the_wait_for_the_daemon(tmp_path: Path, free_port: int) -> None:
    with served_daemon(tmp_path / "state", port=free_port) as daemon:
        program = f"echo ready; until [ -e {tmp_path}/go ]; do sleep 0.01; done; exit 3"
        with running(daemon.url, "--", "sh", "-c", program) as process:
            daemon.kill()
            (tmp_path / "go").touch()
            assert process.stderr is not None
            waiting = "progressd: the command has ended; waiting up to 60 s for the daemon (Ctrl-C stops the wait)\n"
            assert waiting in iter(process.stderr.readline, "")
            while process.returncode is None:  # the first signal may arrive before the wait
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)  # a signal during the exit of Python would change the status
            assert process.returncode == 3
            said = process.stderr.read()
            assert waiting not in said
            assert "the command continues" not in said
            assert said.endswith("progressd: the daemon did not receive the end of the job\n")


COUNTS = "echo ready; until [ -e {} ]; do echo 3/9; sleep 0.05; done; exit 4"
COUNTED = ("-p", r"(?P<current>\d)/(?P<total>\d)")


def test_a_restored_daemon_receives_the_whole_job(tmp_path: Path, free_port: int) -> None:
    state_dir, go = tmp_path / "state", tmp_path / "go"

    def shown() -> list[tuple[str, int]]:
        return [(job["status"], job["progress"]["current_step"]) for job in jobs(daemon)]

    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(state_dir, port=free_port))
        backup(state_dir, tmp_path / "backup.db")
        program = ("sh", "-c", COUNTS.format(go))
        process = closing.enter_context(running(daemon.url, "--name", "long", *COUNTED, "--", *program))
        until(lambda: shown() == [("processing", 3)])
        daemon.kill()
        restore(state_dir, tmp_path / "backup.db")
        go.touch()
        assert process.stderr is not None
        # The text depends on whether a request was open when the daemon was killed.
        assert process.stderr.readline().startswith("progressd: ")
        until(lambda: not below(process.pid))
        with served_daemon(state_dir, port=free_port):
            assert process.wait(PATIENCE) == 4
            assert shown() == [("failed", 3)]
            assert (newest(daemon)["name"], newest(daemon)["error"]) == ("long", "sh failed with exit status 4")
        assert process.stderr.read().splitlines()[-1] == "progressd: the daemon answers again"
