"""`progressd-emit`, the shell script for hosts without Python, in every shell and over both transports."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.answering import answer, answering
from support.reporting import WAYS, place, seen
from support.serving import PATIENCE, ServedDaemon

SCRIPT = Path(__file__).parents[2] / "scripts" / "progressd-emit"
SHELLS = [["bash", "--posix"], ["dash"], ["busybox", "sh"]]
NEEDED = {"socket": "socat", "url": "curl"}


def emit(shell: list[str], *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Return the exit status and the output."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    command = [*shell, str(SCRIPT), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_script_reports_a_job_without_python(shell: list[str], way: str, daemon: ServedDaemon) -> None:
    if shutil.which(NEEDED[way]) is None:
        pytest.skip(f"{NEEDED[way]} is not installed")
    where = {f"PROGRESSD_{way.upper()}": place(daemon, way)}
    status, job_id, errors = emit(shell, "--new", 'back"up', **where)
    assert (status, errors) == (0, "")
    job_id = job_id.strip()
    assert (seen(daemon, job_id)["kind"], seen(daemon, job_id)["status"]) == ('back"up', "processing")
    where["PROGRESSD_JOB_ID"] = job_id
    assert emit(shell, "--step", "3", "--total", "12", 'a \\ "é"\n', **where) == (0, "", "")
    progress = seen(daemon, job_id)["progress"]
    assert (progress["step_name"], progress["percent"]) == ('a \\ "é" ', 25)
    assert emit(shell, "--phase", "Down", "--unit", "B", "--eta", "90", **where) == (0, "", "")
    progress = seen(daemon, job_id)["progress"]
    assert (progress["phase"], progress["unit"], progress["percent"]) == ("Down", "B", 25)
    assert progress["eta"]["from"] == "producer"
    assert emit(shell, "--percent", "40.5", **where) == (0, "", "")
    assert seen(daemon, job_id)["progress"]["percent"] == 40
    assert emit(shell, "--exit", "37", **where) == (0, "", "")
    assert seen(daemon, job_id)["error"] == "failed with exit status 37"
    assert emit(shell, "--exit", "0", **where) == (0, "", "")  # the job keeps its first end
    late = f"Error: job {job_id} is already failed and accepts no completion\n"
    assert emit(shell, "--completed", **where) == (1, "", late)


@pytest.mark.parametrize(
    ("arguments", "event"),
    [
        (["--completed"], {"type": "completed", "data": {}}),
        (["--failed", 'no "paper"'], {"type": "error", "data": {"message": 'no "paper"'}}),
        (["--exit", "0"], {"type": "completed", "data": {}}),
        (["--exit", "130"], {"type": "status_change", "data": {"new_status": "cancelled"}}),
    ],
)
def test_the_events_are_those_of_emit(arguments: list[str], event: dict[str, object]) -> None:
    with answering(answer(b'{"ref":0,"ok":true}\n')) as server:
        assert emit(["sh"], "--job", "x", *arguments, PROGRESSD_URL=f"{server.url}/") == (0, "", "")
    [request] = server.requests
    head, _, body = request.rpartition(b"\r\n")
    assert head.startswith(b"POST /api/events HTTP/1.1\r\n")
    assert json.loads(body) == {"ref": 0, "job_id": "x", **event}


def test_the_key_is_no_argument_of_curl(tmp_path: Path) -> None:
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\necho "$@" > "$0.arguments"\nexec ' + f'{shutil.which("curl")} "$@"\n')
    curl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    with answering(answer(b'{"ref":0,"ok":true}\n')) as server:
        where = {"PROGRESSD_URL": server.url, "PROGRESSD_KEY": "pk_secret"}
        assert emit(["sh"], "--job", "x", "One", PATH=path, **where) == (0, "", "")
    assert b"\r\nAuthorization: Bearer pk_secret\r\n" in server.requests[0]
    assert "secret" not in Path(f"{curl}.arguments").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["One"], "no job given"),
        (["--job", "x"], "report one of these"),
        (["--job", "x", "One", "--completed"], "report one of these"),
        (["--job", "x", "--unit", "B", "--completed"], "report one of these"),
        (["--job", "x", "--step", "two"], "--step is not a number: 'two'"),
        (["--job", "x", "--percent", ""], "--percent is not a number: ''"),
        (["--job", "x", "--steps", "2"], "no such option: --steps"),
        (["--job"], "--job needs a value"),
        (["--bogus"], "no such option: --bogus"),
        (["-n", "2"], "no such option: -n"),
        (["--job", "x", "--step=2"], "the value is a separate word: write --step 2"),
    ],
)
@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_wrong_arguments_are_rejected(shell: list[str], arguments: list[str], sentence: str) -> None:
    status, output, errors = emit(shell, *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith(f"Error: {sentence}")


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_an_empty_job_id_reports_nothing(shell: list[str]) -> None:
    where = {"PROGRESSD_URL": "http://127.0.0.1:1", "PROGRESSD_JOB_ID": ""}
    for arguments in (["One"], ["--exit", "1"]):
        assert emit(shell, *arguments, **where) == (0, "", "")


def test_a_missing_daemon_is_an_error(tmp_path: Path) -> None:
    status, output, errors = emit(["sh"], "--job", "x", "One", PROGRESSD_URL="http://127.0.0.1:1")
    assert (status, output) == (1, "")
    assert "curl" in errors
