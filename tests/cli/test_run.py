"""`progressd run`: commands as jobs, against a real daemon, and without one."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import keys
from support.serving import PATIENCE, ServedDaemon, backup, restore, served_daemon
from support.waiting import alive, until

NOBODY = "http://127.0.0.1:1"
WAITS = "import sys, time; print('ready', flush=True); time.sleep(1000)"


@pytest.fixture
def daemon(served: ServedDaemon) -> ServedDaemon:
    return served


def command(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "progressd", "run", "--url", url, *arguments]


def run(url: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(url, *arguments), input=given, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@contextlib.contextmanager
def running(url: str, *arguments: str, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A command that has written `ready`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*before, *command(url, *arguments)], text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert "ready\n" in iter(process.stdout.readline, "")
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def below(pid: int) -> set[int]:
    """All processes below one."""
    found = set[int]()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in path.read_text().split():
                found |= {int(child)} | below(int(child))
    return found


def jobs(daemon: ServedDaemon) -> list[dict[str, Any]]:
    """The newest job, if there is any."""
    answer = httpx.get(f"{daemon.url}/api/jobs", params={"limit": 1}, trust_env=False, timeout=PATIENCE)
    found: list[dict[str, Any]] = answer.json()["jobs"]
    return found


def newest(daemon: ServedDaemon) -> dict[str, Any]:
    return jobs(daemon)[0]


def test_a_command_keeps_its_input_output_and_exit_status(daemon: ServedDaemon) -> None:
    done = run(daemon.url, "--label", "host=db1", "--", "sh", "-c", "cat; echo no >&2; exit 3", given="text\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "text\n", "no\n")
    job = newest(daemon)
    assert (job["status"], job["error"]) == ("failed", "sh failed with exit status 3")
    assert (job["kind"], job["labels"], job["lease_seconds"]) == ("sh", {"host": "db1"}, 60.0)


def test_a_command_that_ends_well_is_a_job_that_is_completed(daemon: ServedDaemon) -> None:
    assert run(daemon.url, "--name", "nightly", "true").returncode == 0
    job = newest(daemon)
    assert (job["status"], job["kind"]) == ("completed", "nightly")
    assert job["elapsed_seconds"] > 0


def test_progress_is_found_in_what_the_command_writes_which_is_passed_on(daemon: ServedDaemon) -> None:
    pattern = r"(?P<current>\d+)/(?P<total>\d+) (?P<step>\w+)"
    done = run(daemon.url, "-p", pattern, "--", "sh", "-c", "printf '1/4 one\\r'; echo 3/4 three; printf '2/4 two' >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1/4 one\n3/4 three\n", "2/4 two")  # \r is \n in text
    progress = newest(daemon)["progress"]
    assert (progress["total_steps"], progress["current_step"] in (2, 3)) == (4, True)


def test_a_command_can_report_by_itself(daemon: ServedDaemon) -> None:
    program = (
        "import os, httpx\n"
        "event = {'type': 'progress', 'data': {'current_step': 7, 'total_steps': 9}}\n"
        "url = f\"{os.environ['PROGRESSD_URL']}/api/jobs/{os.environ['PROGRESSD_JOB_ID']}/events\"\n"
        "assert httpx.post(url, json=event, trust_env=False, timeout=None).status_code == 200\n"
    )
    assert run(daemon.url, "--", sys.executable, "-c", program).returncode == 0
    assert newest(daemon)["progress"]["current_step"] == 7


def test_a_command_that_cannot_be_started_is_a_job_that_failed(daemon: ServedDaemon) -> None:
    done = run(daemon.url, "/no/such/program")
    assert (done.returncode, done.stderr) == (127, "progressd: /no/such/program: No such file or directory\n")
    assert newest(daemon)["error"] == "/no/such/program cannot be started: No such file or directory"


def test_a_signal_goes_to_the_command_and_tells_in_the_status(daemon: ServedDaemon) -> None:
    with running(daemon.url, "--", sys.executable, "-c", WAITS) as process:
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert newest(daemon)["error"] == f"{sys.executable} was ended by SIGTERM"


@pytest.mark.parametrize("kill", [os.killpg, os.kill])
@pytest.mark.parametrize(
    ("handler", "status"), [("", 128 + signal.SIGINT), ("import signal; signal.signal(2, lambda *_: sys.exit(7))", 7)]
)
def test_a_command_that_is_interrupted_is_a_job_that_is_cancelled(
    handler: str, status: int, kill: Callable[[int, int], None], daemon: ServedDaemon
) -> None:
    program = f"import sys; {handler}\n{WAITS}"
    with running(daemon.url, "--", sys.executable, "-c", program) as process:
        kill(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == status
    assert newest(daemon)["status"] == "cancelled"


def test_an_interruption_that_comes_with_the_end_of_the_command_is_seen(daemon: ServedDaemon) -> None:
    late = """
import signal, trio
from progressd.cli.main import main

ended = trio.Process.wait

async def wait(process):
    status = await ended(process)
    signal.raise_signal(signal.SIGINT)
    return status

trio.Process.wait = wait
main()
"""
    call = [sys.executable, "-c", late, *command(daemon.url, "--", "sh", "-c", "exit 7")[3:]]
    done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert newest(daemon)["status"] == "cancelled"


def test_a_command_whose_output_nobody_takes_any_more_is_told_so(daemon: ServedDaemon) -> None:
    program = ("--", "sh", "-c", "echo ready; read go; echo 1/2; while :; do echo 2/2; done")
    arguments = command(daemon.url, "-p", r"(?P<current>\d)/(?P<total>\d)", *program)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
    assert newest(daemon)["error"] == "sh was ended by SIGPIPE"


def test_what_a_command_has_written_is_passed_on_though_it_has_ended_and_nobody_took_it_yet(tmp_path: Path) -> None:
    lines = [
        "from progressd.cli.main import main",
        "from progressd.system import process_output",
        "process_output.PIPE_TIMEOUT = 0",
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


def test_what_a_command_leaves_behind_does_not_keep_it_from_its_end(daemon: ServedDaemon) -> None:
    program = ("sh", "-c", "while :; do echo tick; sleep 0.05; done & echo 42%; exit 0")
    done = run(daemon.url, "-p", "(?P<percent>[0-9]+)%", "--", *program)
    assert done.returncode == 0
    assert {"42%"} <= set(done.stdout.split()) <= {"42%", "tick"}
    assert newest(daemon)["status"] == "completed"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes a command of another user")
def test_a_command_of_another_user_that_may_not_be_sent_a_signal_goes_on(daemon: ServedDaemon) -> None:
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
    assert said == f"progressd: may not send SIGTERM to {process_of_other} (sh, user nobody)\n"
    assert newest(daemon)["error"] == "setpriv failed with exit status 3"


def test_a_job_that_is_cancelled_ends_its_command(daemon: ServedDaemon) -> None:
    with running(daemon.url, "--", sys.executable, "-c", WAITS) as process:
        job = newest(daemon)
        assert job["status"] == "processing"
        assert httpx.delete(f"{daemon.url}/api/jobs/{job['id']}", trust_env=False, timeout=PATIENCE).status_code == 200
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.stderr is not None
        said = process.stderr.read()
    assert said == f"progressd: job {job['id']} was cancelled: stopping the command\n"
    assert newest(daemon)["status"] == "cancelled"


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
    """What the script is and has started, once all of it runs."""
    until(lambda: len(below(process.pid)) == 7)
    return below(process.pid)


def cancel(daemon: ServedDaemon, **headers: str) -> None:
    url = f"{daemon.url}/api/jobs/{newest(daemon)['id']}"
    assert httpx.delete(url, headers=headers, trust_env=False, timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize("how", ["cancelled", "SIGTERM", "SIGHUP", "SIGINT"])
def test_nothing_that_a_script_has_started_goes_on_once_it_is_stopped(how: str, daemon: ServedDaemon) -> None:
    with running(daemon.url, "--", "sh", "-c", SCRIPT) as process:
        started = script_of(process)
        if how == "cancelled":
            cancel(daemon)
        else:
            process.send_signal(signal.Signals[how])
        number = signal.SIGTERM if how == "cancelled" else signal.Signals[how]
        assert process.wait(PATIENCE) == 128 + number
        assert not [pid for pid in started if alive(pid)]


def test_a_command_has_its_grace_though_the_shell_around_it_ends_at_once(daemon: ServedDaemon, tmp_path: Path) -> None:
    slow = f"trap 'sleep 0.3; touch {tmp_path}/cleaned; exit' TERM; echo ready; while :; do sleep 0.01; done"
    with running(daemon.url, "--", "sh", "-c", f'setsid sh -c "{slow}" & wait') as process:
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert (tmp_path / "cleaned").exists()


def test_what_a_command_leaves_behind_when_it_ends_by_itself_goes_on(daemon: ServedDaemon) -> None:
    done = run(daemon.url, "--", "sh", "-c", "sleep 1000 > /dev/null 2>&1 & echo $!")
    assert done.returncode == 0
    assert alive(int(done.stdout))
    os.kill(int(done.stdout), signal.SIGKILL)


@contextlib.contextmanager
def in_terminal(url: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command in the foreground of a terminal, and the terminal's other end."""
    ours, theirs = os.openpty()
    try:
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        with subprocess.Popen(["setsid", "--ctty", *command(url, *arguments)], **streams) as process:  # type: ignore[call-overload]
            try:
                yield process, ours
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_a_terminal_does_not_reach_is_interrupted_too_and_the_rest_once(
    daemon: ServedDaemon, tmp_path: Path
) -> None:
    counts = "import os, signal, sys, time\nsignal.signal(2, lambda *_: os.write(1, b'x'))\nprint('on', flush=True)\n"
    (tmp_path / "count.py").write_text(
        f"{counts}time.sleep(1000) if sys.argv[1] == 'out' else signal.pause()\nsys.exit(7)"
    )
    python = f"{sys.executable} {tmp_path}/count.py"
    script = f"setsid {python} out > {tmp_path}/out & {python} in > {tmp_path}/in"
    with in_terminal(daemon.url, "--", "sh", "-c", f"trap 'exit 5' INT; {script}; exit 6") as (process, terminal):
        until(
            lambda: (
                [(tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("out", "in")] == ["on\n"] * 2
            )
        )
        os.write(terminal, b"\x03")
        assert process.wait(PATIENCE) == 5
    assert [(tmp_path / name).read_text() for name in ("out", "in")] == ["on\nx"] * 2
    assert newest(daemon)["status"] == "cancelled"


def test_a_command_under_nohup_does_not_hear_that_the_terminal_has_gone(daemon: ServedDaemon) -> None:
    with running(
        daemon.url, "--", "sh", "-c", "echo ready; read line < /dev/null; sleep 0.5; exit 3", before=["nohup"]
    ) as process:
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(PATIENCE) == 3


def test_a_command_that_has_told_its_end_goes_on_all_the_same(daemon: ServedDaemon) -> None:
    program = (
        "import os, httpx, time\n"
        "job = f\"{os.environ['PROGRESSD_URL']}/api/jobs/{os.environ['PROGRESSD_JOB_ID']}\"\n"
        "httpx.post(f'{job}/events', json={'type': 'completed'}, trust_env=False, timeout=None).raise_for_status()\n"
        "time.sleep(0.3)\n"
        "print('cleaned up')\n"
    )
    done = run(daemon.url, "--", sys.executable, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cleaned up\n", "")
    assert newest(daemon)["status"] == "completed"


def test_it_runs_though_no_daemon_answers(daemon: ServedDaemon) -> None:
    done = run(NOBODY, "--", "sh", "-c", "echo done; exit 4")
    assert (done.returncode, done.stdout) == (4, "done\n")
    assert done.stderr.count("the command runs all the same") == 1


def test_the_end_is_told_to_a_daemon_that_was_away(tmp_path: Path, free_port: int) -> None:
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(tmp_path / "state", port=free_port))
        program = f"echo ready; until [ -e {tmp_path}/go ]; do sleep 0.01; done"
        process = closing.enter_context(running(daemon.url, "--", "sh", "-c", program))
        daemon.kill()
        (tmp_path / "go").touch()
        assert process.stderr is not None
        said = f"progressd: no daemon answers at {daemon.url}; the command runs all the same\n"
        assert process.stderr.readline() == said
        with served_daemon(tmp_path / "state", port=free_port):
            assert process.wait(PATIENCE) == 0
            assert newest(daemon)["status"] == "completed"
        assert process.stderr.read() == "progressd: the daemon answers again\n"


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << number - 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_is_not_started_after_a_signal_that_comes_while_the_daemon_hangs(
    number: signal.Signals, tmp_path: Path
) -> None:
    with served_daemon(tmp_path / "state") as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            with subprocess.Popen(command(daemon.url, "--", "touch", f"{tmp_path}/began")) as process:
                until(lambda: hears(process.pid, signal.SIGCHLD) and hears(process.pid, signal.SIGTERM))
                process.send_signal(number)
                daemon.process.send_signal(signal.SIGCONT)
                assert process.wait(PATIENCE) == 128 + number
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert newest(daemon)["status"] == "cancelled"
    assert not (tmp_path / "began").exists()


def test_a_signal_cuts_short_the_wait_for_a_daemon_that_is_away(tmp_path: Path, free_port: int) -> None:
    with served_daemon(tmp_path / "state", port=free_port) as daemon:
        program = f"echo ready; until [ -e {tmp_path}/go ]; do sleep 0.01; done; exit 3"
        with running(daemon.url, "--", "sh", "-c", program) as process:
            daemon.kill()
            (tmp_path / "go").touch()
            assert process.stderr is not None
            assert process.stderr.readline().startswith("progressd: no daemon answers")
            until(lambda: not below(process.pid))
            while process.returncode is None:  # the first may have come before the wait
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            assert process.returncode == 3
            assert process.stderr.read() == "progressd: the daemon was not told how the command ended\n"


def emit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "progressd", "emit", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("way", ["url", "socket"])
def test_a_script_says_how_far_it_is_and_how_it_ended(way: str, daemon: ServedDaemon) -> None:
    job_id = httpx.post(f"{daemon.url}/api/jobs", json={"kind": "script"}, trust_env=False, timeout=PATIENCE).json()[
        "id"
    ]
    where = {"url": {"PROGRESSD_URL": daemon.url}, "socket": {"PROGRESSD_SOCKET": f"{daemon.state_dir}/ingest.sock"}}
    environment = {"PROGRESSD_JOB_ID": job_id, **where[way]}
    done = emit(environment, "--step", "3", "--total", "12", "Upscaling")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    progress = newest(daemon)["progress"]
    assert (progress["step_name"], progress["percent"]) == ("Upscaling", 25)
    assert emit(environment, "--percent", "40").returncode == 0
    assert newest(daemon)["progress"]["percent"] == 40
    assert emit(environment, "--failed", "no paper").returncode == 0
    assert newest(daemon)["error"] == "no paper"
    late = emit(environment, "--completed")
    assert late.returncode == 1
    assert late.stderr == f"Error: job {job_id} is already failed: a completion comes too late\n"


def test_a_script_in_a_command_knows_its_job(daemon: ServedDaemon) -> None:
    script = f"{sys.executable} -m progressd emit --step 7 --total 9 Seven"
    assert run(daemon.url, "--", "sh", "-c", script).returncode == 0
    assert newest(daemon)["progress"]["step_name"] == "Seven"


def test_without_a_daemon_a_script_is_told_so(tmp_path: Path) -> None:
    gone = emit({"PROGRESSD_JOB_ID": "x", "PROGRESSD_SOCKET": f"{tmp_path}/none.sock"}, "Copying")
    assert gone.returncode == 1
    assert gone.stderr == f"Error: no daemon answers at {tmp_path}/none.sock: No such file or directory\n"


COUNTS = "echo ready; until [ -e {} ]; do echo 3/9; sleep 0.05; done; exit 4"
COUNTED = ("-p", r"(?P<current>\d)/(?P<total>\d)")


def test_a_job_that_is_cancelled_ends_its_command_though_its_key_may_only_write(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.json"
    writer, other = keys.add(path, "writer", "write"), keys.add(path, "other", "read", "write")
    with (
        served_daemon(tmp_path / "state", config="auth.required = true") as daemon,
        running(daemon.url, "--key", writer, *COUNTED, "--", "sh", "-c", COUNTS.format("/no/file")) as process,
        httpx.Client(base_url=daemon.url, headers=keys.bearer(other), trust_env=False, timeout=PATIENCE) as client,
    ):
        [job] = client.get("/api/jobs").json()["jobs"]
        assert client.delete(f"/api/jobs/{job['id']}").status_code == 200
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == f"progressd: job {job['id']} was cancelled: stopping the command\n"


@pytest.mark.parametrize("pattern", [COUNTED, ()], ids=["progress", "no progress"])
def test_a_daemon_that_was_restored_from_a_backup_is_told_all_of_the_job(
    pattern: tuple[str, ...], tmp_path: Path, free_port: int
) -> None:
    state_dir, go = tmp_path / "state", tmp_path / "go"
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(state_dir, port=free_port))
        backup(state_dir, tmp_path / "backup.db")
        program = ("sh", "-c", COUNTS.format(go))
        process = closing.enter_context(running(daemon.url, "--name", "long", *pattern, "--", *program))
        until(lambda: newest(daemon)["progress"]["current_step"] == (3 if pattern else 0))
        daemon.process.terminate()
        daemon.process.wait(PATIENCE)
        restore(state_dir, tmp_path / "backup.db")
        with served_daemon(state_dir, port=free_port):
            until(lambda: [job["status"] for job in jobs(daemon)] == ["processing"])
            until(lambda: newest(daemon)["progress"]["current_step"] == (3 if pattern else 0))
            go.touch()
            assert process.wait(PATIENCE) == 4
            assert (newest(daemon)["kind"], newest(daemon)["error"]) == ("long", "sh failed with exit status 4")


def test_an_end_that_a_restored_daemon_is_told_first_comes_with_all_of_the_job(tmp_path: Path, free_port: int) -> None:
    state_dir, go = tmp_path / "state", tmp_path / "go"
    with contextlib.ExitStack() as closing:
        daemon = closing.enter_context(served_daemon(state_dir, port=free_port))
        backup(state_dir, tmp_path / "backup.db")
        program = f"echo 3/9; echo ready; until [ -e {go} ]; do sleep 0.05; done"
        process = closing.enter_context(running(daemon.url, *COUNTED, "--", "sh", "-c", program))
        until(lambda: newest(daemon)["progress"]["current_step"] == 3)
        daemon.kill()
        go.touch()
        assert process.stderr is not None
        assert process.stderr.readline().startswith("progressd: no daemon answers")
        restore(state_dir, tmp_path / "backup.db")
        with served_daemon(state_dir, port=free_port):
            assert process.wait(PATIENCE) == 0
            job = newest(daemon)
    assert (job["status"], job["progress"]["current_step"]) == ("completed", 3)
