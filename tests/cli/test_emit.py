"""`progressd emit`: nothing that a script says, and no daemon, is trouble."""

import os
import socket
import subprocess
import sys
from importlib import import_module
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from progressd.cli.main import main
from support.answering import unreachable
from support.serving import PATIENCE, ServedDaemon

NO_TEXT = os.fsdecode(b"a\xff")


@pytest.fixture
def daemon(served: ServedDaemon) -> ServedDaemon:
    return served


def emit(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, ["emit", *arguments], prog_name="progressd", env=environ)


def registered(daemon: ServedDaemon) -> str:
    job = httpx.post(f"{daemon.url}/api/jobs", json={"kind": "script"}, trust_env=False, timeout=PATIENCE)
    return str(job.json()["id"])


def seen(daemon: ServedDaemon, job_id: str) -> dict[str, Any]:
    response = httpx.get(f"{daemon.url}/api/jobs/{job_id}", trust_env=False, timeout=PATIENCE)
    view: dict[str, Any] = response.json()
    return view


@pytest.mark.parametrize("way", ["url", "socket"])
def test_names_that_are_no_text_and_long_ones_are_told(way: str, daemon: ServedDaemon) -> None:
    where = {"url": {"PROGRESSD_URL": daemon.url}, "socket": {"PROGRESSD_SOCKET": f"{daemon.state_dir}/ingest.sock"}}
    job_id = registered(daemon)
    program = [sys.executable, "-m", "progressd", "emit", "--job", job_id, NO_TEXT]
    done = subprocess.run(program, env={**os.environ, **where[way]}, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.stderr, done.returncode) == (b"", 0)
    assert seen(daemon, job_id)["progress"]["step_name"] == "a?"
    assert emit("--job", job_id, "x" * 5000, **where[way]).exit_code == 0
    assert len(seen(daemon, job_id)["progress"]["step_name"]) == 1000
    assert emit("--job", job_id, "--failed", NO_TEXT * 10_000, **where[way]).exit_code == 0
    assert seen(daemon, job_id)["error"].startswith("a?a?")


@pytest.mark.parametrize("command", ["emit", "cancel", "retry", "watch"])
def test_an_id_that_is_no_text_is_no_job(command: str, daemon: ServedDaemon) -> None:
    arguments = ["emit", "One", "--job", NO_TEXT] if command == "emit" else [command, NO_TEXT]
    result = CliRunner().invoke(main, arguments, env={"PROGRESSD_URL": daemon.url})
    assert (result.exit_code, "is not a job id" in result.output) == (1, True), result.output


def test_a_percentage_that_is_no_number_is_refused() -> None:
    result = emit("--job", "x", "--percent", "nan")
    assert (result.exit_code, "nan is not in the range" in result.output) == (2, True)


def test_a_daemon_that_is_away_does_not_hold_up_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    command = import_module("progressd.cli.commands.emit")
    monkeypatch.setattr(command, "CONNECT_TIMEOUT", 0.1)
    monkeypatch.setattr(command, "ANSWER_TIMEOUT", 0.2)
    with unreachable() as url:
        result = emit("--job", "x", "One", PROGRESSD_URL=url)
    assert result.output == f"Error: no daemon answers at {url}; start one with: progressd serve\n"
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        result = emit("--job", "x", "One", PROGRESSD_URL=url)
    assert result.output == f"Error: {url} gave no answer within 0.2 seconds\n"
