"""`progressd emit` in scripts."""

import json
import os
import shlex
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.cli import fast_emit
from progressd.core import event_limits
from support import cli
from support.answering import answer, answering, taken, unreachable
from support.cli import run
from support.reporting import WAYS, place, registered, seen
from support.serving import PATIENCE, ServedDaemon

NO_TEXT = os.fsdecode(b"a\xff")


emit = partial(run, "emit")


def environment(daemon: ServedDaemon, way: str) -> dict[str, str]:
    return {f"PROGRESSD_{way.upper()}": place(daemon, way)}


@pytest.mark.parametrize("way", WAYS)
def test_a_script_reports_progress_and_its_end(way: str, daemon: ServedDaemon) -> None:
    job_id = registered(daemon)
    where = {"PROGRESSD_JOB_ID": job_id, **environment(daemon, way)}
    done = emit("--step", "3", "--total", "12", "Upscaling", **where)
    assert (done.exit_code, done.output) == (0, "")
    progress = seen(daemon, job_id)["progress"]
    assert (progress["step_name"], progress["percent"]) == ("Upscaling", 25)
    assert emit("--percent", "40", **where).exit_code == 0
    assert seen(daemon, job_id)["progress"]["percent"] == 40
    assert emit("--failed", "no paper", **where).exit_code == 0
    assert seen(daemon, job_id)["error"] == "no paper"
    late = emit("--completed", **where)
    assert late.exit_code == 1
    assert late.stderr == f"Error: job {job_id} is already failed and accepts no completion\n"


@pytest.mark.parametrize("way", WAYS)
def test_a_script_reports_tasks_and_phases(way: str, daemon: ServedDaemon) -> None:
    job_id = registered(daemon)
    where = {"PROGRESSD_JOB_ID": job_id, **environment(daemon, way)}
    first = ("--phase", "Upload", "--task", "a", "--current", "30", "--total", "100", "--unit", "B", "Database")
    for arguments in (first, ("--task", "b", "--total=100", "--unit=B"), ("--task", "b", "--failed", "no space left")):
        done = emit(*arguments, **where)
        assert (done.exit_code, done.output) == (0, "")
    progress = seen(daemon, job_id)["progress"]
    assert (progress["phase"], progress["step_name"], progress["percent"]) == ("Upload", "no space left", 65)
    assert progress["tasks"] == [
        {"id": "a", "name": "Database", "current": 30, "total": 100, "state": "processing", "unit": "B"},
        {"id": "b", "name": "b", "current": 0, "total": 100, "state": "failed", "unit": "B"},
    ]
    assert emit("--task", "a", "--completed", **where).exit_code == 0
    assert emit("--phase", "Cleanup", **where).exit_code == 0
    progress = seen(daemon, job_id)["progress"]
    assert (progress["phase"], progress["percent"], progress["tasks"][0]["state"]) == ("Cleanup", 100, "completed")


@pytest.mark.parametrize("way", WAYS)
def test_a_script_may_know_the_remaining_time(way: str, daemon: ServedDaemon) -> None:
    job_id = registered(daemon)
    where = {"PROGRESSD_JOB_ID": job_id, **environment(daemon, way)}
    assert emit("--step", "3", "--total", "12", "Upscaling", **where).exit_code == 0
    assert emit("--eta", "90.5", **where).exit_code == 0
    progress = seen(daemon, job_id)["progress"]
    assert (progress["step_name"], progress["percent"]) == ("Upscaling", 25)
    assert (progress["eta"]["from"], progress["eta_seconds"]) == ("producer", 90.5)


@pytest.mark.parametrize("way", WAYS)
def test_long_names_and_invalid_utf_8_are_replaced(way: str, daemon: ServedDaemon) -> None:
    where = environment(daemon, way)
    job_id = registered(daemon)
    assert program("--job", job_id, NO_TEXT, **where) == (0, "", "")
    assert seen(daemon, job_id)["progress"]["step_name"] == "a?"
    assert emit("--job", job_id, "x" * 5000, **where).exit_code == 0
    assert len(seen(daemon, job_id)["progress"]["step_name"]) == 1000
    assert emit("--job", job_id, "--failed", NO_TEXT * 10_000, **where).exit_code == 0
    assert seen(daemon, job_id)["error"].startswith("a?a?")


@pytest.mark.parametrize("command", ["emit", "cancel", "retry", "watch"])
def test_an_invalid_utf_8_id_is_rejected(command: str, daemon: ServedDaemon) -> None:
    arguments = ["emit", "One", "--job", NO_TEXT] if command == "emit" else [command, NO_TEXT]
    result = run(*arguments, PROGRESSD_URL=daemon.url)
    assert (result.exit_code, "is not a job id" in result.output) == (1, True), result.output


@pytest.mark.parametrize("option", ["--percent", "--eta"])
def test_nan_is_rejected(option: str) -> None:
    result = emit("--job", "x", option, "nan")
    assert (result.exit_code, "nan is not" in result.output) == (2, True)


def test_a_missing_daemon_does_not_delay_a_script(tmp_path: Path) -> None:
    gone = emit("--job", "x", "One", PROGRESSD_SOCKET=f"{tmp_path}/none.sock")
    assert gone.output == f"Error: no daemon answers at {tmp_path}/none.sock: No such file or directory\n"
    begun = time.monotonic()
    with unreachable() as url:
        said = f"Error: no daemon answers at {url}; start one with: progressd serve\n"
        assert program("--job", "x" * 36, "One", PROGRESSD_URL=url) == (1, "", said)
    assert time.monotonic() - begun < PATIENCE  # it waits for 3 s, not for TCP's timeout of minutes


def program(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run emit as scripts do. Return its exit status and output."""
    done = cli.program("emit", *arguments, **environ)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_the_program_reports_and_prints_rejections(way: str, daemon: ServedDaemon) -> None:
    job_id = registered(daemon)
    where = {"PROGRESSD_JOB_ID": job_id, **environment(daemon, way)}
    assert program("-n", "3", "--total=12", 'a "b"\\\n', **where) == (0, "", "")
    progress = seen(daemon, job_id)["progress"]
    assert (progress["step_name"], progress["percent"]) == ('a "b"\\\n', 25)
    assert program("--failed", "no paper", **where) == (0, "", "")
    late = f"Error: job {job_id} is already failed and accepts no completion\n"
    assert program("--completed", **where) == (1, "", late)
    assert program("--job", "x", "One", **environment(daemon, way))[0] == 1


words = st.text(alphabet='aé"\\\n\udcff😀= -', max_size=3) | st.sampled_from(["x" * 1001, "--", "-n3", "-h"])
COUNTS = ["0", "7", "9007199254740992", "9007199254740993", "-1", "1_0", " 3"]
numbers = st.sampled_from([*COUNTS, "4.5", "1e1", "nan", ""])
arguments = st.lists(
    st.one_of(
        words.map(lambda word: [word]),
        st.just(["--completed"]),
        st.tuples(st.sampled_from(["--failed", "--job"]), words).map(list),
        st.tuples(st.sampled_from(["--step", "--current", "-n", "-t", "--total", "--percent", "--eta"]), numbers).map(
            list
        ),
        st.tuples(st.sampled_from(["--unit", "--phase", "--task"]), words).map(list),
        st.tuples(st.sampled_from(["--step", "--total", "--percent"]), numbers).map(lambda pair: ["=".join(pair)]),
    ),
    max_size=4,
).map(lambda groups: [argument for group in groups for argument in group])


class Recorder(socketserver.ThreadingUnixStreamServer):
    """Answer each event as the daemon does, and keep the event."""

    def __init__(self, path: str) -> None:
        self.events: list[dict[str, object]] = []
        super().__init__(path, _Recording)


class _Recording(socketserver.StreamRequestHandler):
    server: Recorder

    def handle(self) -> None:
        self.server.events.append(json.loads(self.rfile.readline()))
        self.wfile.write(b'{"ref":0,"ok":true,"cursor":"c-1"}\n')


@given(arguments)
def test_both_paths_send_the_same(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory, Recorder(f"{directory}/s") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            environ = {"PROGRESSD_SOCKET": f"{directory}/s", "PROGRESSD_JOB_ID": "job"}
            accepted = fast_emit.report(arguments, environ)
            if accepted:
                assert emit(*arguments, **environ).exit_code == 0
                [fast, slow] = server.events
                assert fast == slow
            else:
                assert server.events == []
        finally:
            server.shutdown()


def test_the_limits_of_the_fast_path_are_those_of_events() -> None:
    limits = {name: value for name, value in vars(event_limits).items() if name.startswith("MAX_")}
    copied = {
        name: value for name, value in vars(fast_emit).items() if name.startswith("MAX_") and name != "MAX_ANSWER"
    }
    assert copied
    assert copied.items() <= limits.items()


def test_the_program_sends_a_key(tmp_path: Path) -> None:
    with answering(b'HTTP/1.1 200 OK\r\n\r\n{"ok":true}') as server:
        key_file = tmp_path / "key"
        key_file.write_text("pk_file\n")
        job = "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"
        for arguments, environ in (
            (["--key", "pk_file"], {}),
            (["--key-file", str(key_file)], {"PROGRESSD_KEY": "pk_environment"}),
            ([], {"PROGRESSD_KEY": "pk_file", "PROGRESSD_KEY_FILE": "/nonexistent"}),
        ):
            assert program("--job", job, "One", "--url", server.url + "/base/", *arguments, **environ) == (0, "", "")
    assert len(server.requests) == 3
    for request in server.requests:
        assert request.startswith(f"POST /base/api/jobs/{job}/events HTTP/1.1\r\n".encode())
        assert b"\r\nAuthorization: Bearer pk_file\r\n" in request


@pytest.mark.parametrize("way", WAYS)
def test_new_registers_and_starts_a_job(way: str, daemon: ServedDaemon) -> None:
    done = emit("--new", "backup", "--total", "4", "--lease", "90", **environment(daemon, way))
    assert done.exit_code == 0, done.output
    job = seen(daemon, done.output.strip())
    assert (job["kind"], job["status"], job["progress"]["total_steps"]) == ("backup", "processing", 4)
    assert job["lease_seconds"] == 90


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--new", "a", "--job", "x"], "leave out --job"),
        (["--new", "a", "--completed"], "report one of these"),
        (["--new", "a", "One"], "report one of these"),
        (["--completed", "--exit", "0"], "report one of these"),
        (["--new", "a", "--unit", "B"], "--unit, --phase and --eta only go with progress"),
        (["--job", "x", "--eta", "9", "--failed", "a"], "--unit, --phase and --eta only go with progress"),
        (["--job", "x", "--phase", "a", "--completed"], "--unit, --phase and --eta only go with progress"),
        (["--job", "x", "--task", "a", "--percent", "4"], "--task does not combine with"),
        (["--job", "x", "--task", "a", "--completed", "--failed", "b"], "either --completed or --failed"),
        (["--job", "x", "--shell", "One"], "--shell needs --new"),
        (["--job", "x", "--lease", "9", "One"], "--lease needs --new"),
    ],
)
def test_contradictory_options_are_rejected(arguments: list[str], sentence: str) -> None:
    result = emit(*arguments)
    assert (result.exit_code, sentence in result.output) == (2, True), result.output


SHELLS = [["bash"], ["dash"], ["busybox", "sh"]]


def script(shell: list[str], text: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script that makes itself a job and prints the id of the job."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    new = " ".join(map(shlex.quote, ["progressd", "emit", "--new", "backup", "--shell", *options]))
    lines = [
        f'progressd() {{ {sys.executable} -m progressd "$@"; }}',
        f'eval "$({new})"',
        "echo $PROGRESSD_JOB_ID",
        text,
    ]
    return subprocess.run(
        [*shell, "-c", "\n".join(lines)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize(
    ("text", "exit_status", "status", "error"),
    [
        ("progressd emit --percent 40", 0, "completed", None),
        ("progressd emit --percent 40; exit 37", 37, "failed", "failed with exit status 37"),
        ("kill $$; sleep 0", 143, "failed", "killed by SIGTERM"),
        ("kill -INT $$; sleep 0", 130, "cancelled", None),
        ("progressd emit --failed 'no paper'; exit 3", 3, "failed", "no paper"),
    ],
)
def test_a_script_is_a_job(
    shell: list[str], text: str, exit_status: int, status: str, error: str | None, daemon: ServedDaemon
) -> None:
    done = script(shell, text, "--socket", place(daemon, "socket"))
    assert (done.returncode, done.stderr) == (exit_status, "")
    job = seen(daemon, done.stdout.strip())
    assert (job["kind"], job["status"], job.get("error")) == ("backup", status, error)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_script_without_a_daemon_runs_without_a_job(shell: list[str], daemon: ServedDaemon) -> None:
    outer = registered(daemon)
    text = "set -e; progressd emit --percent 40; progressd emit --percent; echo no"
    where = {"PROGRESSD_JOB_ID": outer, "PROGRESSD_URL": daemon.url}
    done = script(shell, text, "--url", "http://127.0.0.1:1", **where)
    assert (done.returncode, done.stdout) == (2, "\n")  # arguments are checked
    error, *usage = done.stderr.splitlines()
    assert error == "Error: no daemon answers at http://127.0.0.1:1; start one with: progressd serve"
    assert usage[-1].startswith("Error: Option '--percent' requires an argument")
    assert seen(daemon, outer)["status"] == "queued"


def test_an_option_overrides_a_variable(daemon: ServedDaemon) -> None:
    job_id = registered(daemon)
    where = ("--socket", place(daemon, "socket"))
    gone = {"PROGRESSD_URL": "http://127.0.0.1:1"}
    assert program("--job", job_id, *where, "One", **gone) == (0, "", "")
    assert seen(daemon, job_id)["progress"]["step_name"] == "One"
    assert emit("--job", job_id, *where, "Two", **gone).exit_code == 0
    assert seen(daemon, job_id)["progress"]["step_name"] == "Two"
    done = script(["sh"], "progressd emit --percent 40", *where, **gone)
    assert (done.returncode, done.stderr) == (0, "")
    assert seen(daemon, done.stdout.strip())["status"] == "completed"


def test_the_variables_of_a_script_name_the_daemon() -> None:
    with answering(taken, answer(b'{"ok":true}')) as server:
        done = script(["sh"], "env | grep ^PROGRESSD", "--url", server.url, "--key", "it's", "--socket", "no")
    variables = [line for line in done.stdout.splitlines() if "=" in line]
    assert f"PROGRESSD_URL={server.url}" in variables
    assert "PROGRESSD_KEY=it's" in variables
    assert "PROGRESSD_SOCKET" not in done.stdout  # the URL precedes it
    assert done.stderr == ""
