"""`progressd emit` in scripts."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from support.answering import unreachable
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
    assert late.stderr == f"Error: job {job_id} is already failed: a completion comes too late\n"


@pytest.mark.parametrize("way", WAYS)
def test_long_names_and_invalid_utf_8_are_replaced(way: str, daemon: ServedDaemon) -> None:
    where = environment(daemon, way)
    job_id = registered(daemon)
    program = [sys.executable, "-m", "progressd", "emit", "--job", job_id, NO_TEXT]
    done = subprocess.run(program, env={**os.environ, **where}, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.stderr, done.returncode) == (b"", 0)
    assert seen(daemon, job_id)["progress"]["step_name"] == "a?"
    assert emit("--job", job_id, "x" * 5000, **where).exit_code == 0
    assert len(seen(daemon, job_id)["progress"]["step_name"]) == 1000
    assert emit("--job", job_id, "--failed", NO_TEXT * 10_000, **where).exit_code == 0
    assert seen(daemon, job_id)["error"].startswith("a?a?")


@pytest.mark.parametrize("command", ["emit", "cancel", "retry", "watch"])
def test_an_id_that_is_not_utf_8_is_rejected(command: str, daemon: ServedDaemon) -> None:
    arguments = ["emit", "One", "--job", NO_TEXT] if command == "emit" else [command, NO_TEXT]
    result = run(*arguments, PROGRESSD_URL=daemon.url)
    assert (result.exit_code, "is not a job id" in result.output) == (1, True), result.output


def test_nan_is_rejected() -> None:
    result = emit("--job", "x", "--percent", "nan")
    assert (result.exit_code, "nan is not in the range" in result.output) == (2, True)


def test_a_missing_daemon_does_not_delay_a_script(tmp_path: Path) -> None:
    gone = emit("--job", "x", "One", PROGRESSD_SOCKET=f"{tmp_path}/none.sock")
    assert gone.output == f"Error: no daemon answers at {tmp_path}/none.sock: No such file or directory\n"
    begun = time.monotonic()
    with unreachable() as url:
        result = emit("--job", "x", "One", PROGRESSD_URL=url)
    assert result.output == f"Error: no daemon answers at {url}; start one with: progressd serve\n"
    assert time.monotonic() - begun < PATIENCE  # it waits for 3 s, not for TCP's timeout of minutes
