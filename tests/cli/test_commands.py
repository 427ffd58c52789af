import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from progressd import __version__
from progressd.cli.main import COMMANDS
from support.answering import answer, answering
from support.cli import PROGRESSD, program, run
from support.waiting import PATIENCE

NOBODY = "http://127.0.0.1:1"


def test_the_help_lists_all_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    positions = [result.output.index(f"\n  {command} ") for command in COMMANDS]
    assert positions == sorted(positions)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    result = run(command, "-h")
    assert result.exit_code == 0
    assert f"progressd {command}" in result.output.partition("\n")[2]


def test_the_version() -> None:
    assert run("--version").output == f"progressd {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["cancel"], "Missing argument 'JOB'"),
        (["retry"], "Missing argument 'JOB'"),
        (["delete"], "Missing argument 'JOB...'"),
        (["run"], "Missing argument 'COMMAND...'"),
        (["emit", "--step", "3"], "no job given: use --job, or set PROGRESSD_JOB_ID"),
        (["emit", "--job", "x"], "report one of these: progress, --completed, --failed, --exit or --new"),
        (["emit", "--job", "x", "Copying", "--completed"], "report one of these"),
        (["emit", "--job", "x", "--percent", "101"], "101.0 is not in the range"),
        (["run", "--label", "x", "true"], "'x' is not of the form NAME=VALUE"),
        (["run", "-p", "(", "true"], "is not a regular expression"),
        (["run", "-p", r"done \d+", "true"], r"'done \d+' needs the named groups"),
        (["run", "--nam", "x", "--", "true"], "--nam"),
        (["run", "-x", "true"], "No such option"),
        (["submit"], "Missing argument 'FILES...'"),
        (["submit", "/no/such/file"], "'/no/such/file' does not exist"),
        (["submit", __file__, "--label", "team"], "'team' is not of the form NAME=VALUE, such as host=db1"),
        (["submit", __file__, "--priority", "urgent"], "'urgent' is not one of 'low', 'normal', 'high'"),
        (["submit", __file__, "--option", "dpi"], "'dpi' is not of the form NAME=VALUE, such as dpi=300"),
        (["serve", "--port", "http"], "Invalid value for '--port': 'http' is not an integer from 0 to 65535"),
        (["serve", "--log-level", "loud"], "'loud' is not one of 'debug', 'info', 'warning', 'error'"),
        (["jobs", "--label", "host"], "'host' is not of the form NAME=VALUE, such as host=db1"),
        (["jobs", "--limit", "0"], "0 is not in the range"),
        (["jobs", "--status", "lost"], "'lost' is not one of 'queued', 'processing'"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
    ],
)
def test_invalid_arguments_exit_with_2(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, said in result.output) == (2, True), result.output


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["serve", "--port", "http"], 2, "<3>Error: Invalid value for '--port': "),
        (["serve", "--host", "192.0.2.1"], 1, "<3>Error: "),
        (["nonsense"], 2, "<3>Error: No such command 'nonsense'."),
    ],
)
def test_errors_have_a_level_in_the_journal(arguments: list[str], status: int, said: str, tmp_path: Path) -> None:
    with tempfile.TemporaryFile("w+") as stderr:
        seen = os.fstat(stderr.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{seen.st_dev}:{seen.st_ino}"}
        call = [*PROGRESSD, *arguments]
        ended = subprocess.run(call, env=environ, stderr=stderr, cwd=tmp_path, timeout=PATIENCE, check=False)
        stderr.seek(0)
        lines = stderr.read().splitlines()
    assert (ended.returncode, {line[:10] for line in lines}) == (status, {"<3>Error: "}), lines
    assert lines[0].startswith(said)


@pytest.mark.parametrize("stream", ["", "nonsense", "1:2"])
def test_errors_outside_the_journal_have_no_level(stream: str) -> None:
    assert run("nonsense", JOURNAL_STREAM=stream).output.splitlines()[-1] == "Error: No such command 'nonsense'."


ID = "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"
CLIENTS = pytest.mark.parametrize(
    "arguments", [["jobs"], ["watch"], ["watch", ID], ["cancel", ID], ["retry", ID], ["submit", __file__]]
)


@CLIENTS
def test_a_missing_daemon_is_an_error(arguments: list[str]) -> None:
    result = run(*arguments, PROGRESSD_URL=NOBODY)
    assert result.exit_code == 1
    assert result.output == f"Error: no daemon answers at {NOBODY}; start one with: progressd serve\n"


@CLIENTS
def test_another_server_is_an_error(arguments: list[str]) -> None:
    with answering(answer(b"<html>", 404, Connection="close"), unread=True) as server:
        result = run(*arguments, "--url", server.url)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    said = f": {server.url} answered with HTTP status 404; this does not seem to be progressd (check the URL)\n"
    assert result.output.endswith(said)


def test_jobs_are_selected_by_the_daemon() -> None:
    with answering(answer(b'{"jobs":[],"total":0}')) as server:
        labels = ["--label", "team=scan", "--label", "user=eve", "--host", "db1"]
        statuses = ["--status", "failed", "--status", "queued"]
        result = run("jobs", "--url", server.url, *statuses, *labels, "--search", "night backup")
    assert (result.exit_code, result.output) == (0, "JOB  STATUS  DONE  CREATED  NAME\n")
    query = "limit=50&status=failed%2Cqueued&label=team%3Dscan&label=user%3Deve&label=host%3Ddb1&q=night+backup"
    assert server.requests[0].splitlines()[0] == f"GET /api/jobs?{query} HTTP/1.1".encode()


def test_an_invalid_url_is_an_error() -> None:
    result = run("jobs", "--url", "localhost:8080")
    assert result.exit_code == 1
    assert result.output.startswith("Error: 'localhost:8080' is not the address of a daemon")


def test_config_prints_settings_and_origins(tmp_path: Path) -> None:
    path = tmp_path / "progressd.toml"
    path.write_text("[server]\nport = 7\n")
    result = run("config", "--config", str(path), PROGRESSD_SERVER_HOST="::1")
    assert result.exit_code == 0
    lines = {line.partition(" ")[0]: line for line in result.output.splitlines()}
    assert lines["port"].split("# ") == [f"{'port = 7':<44}", f"file {path}"]
    assert lines["host"].endswith("# environment PROGRESSD_SERVER_HOST")


def test_config_rejects_invalid_settings() -> None:
    for command in ("config", "serve"):
        result = run(command, PROGRESSD_SERVER_PORT="x")
        assert result.exit_code == 1
        assert result.output.startswith("Error: server.port = 'x', from environment PROGRESSD_SERVER_PORT: expected")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("arguments", [["backup", "/tmp/x.db"], ["keys", "list"], ["token"]])
def test_an_unreadable_state_directory_is_an_error(arguments: list[str]) -> None:
    code = """
import os, sys
import progressd.admin.maintenance, progressd.auth.api_keys, progressd.auth.watch_tokens, progressd.config.load
from progressd.cli.main import main
main.get_command(None, sys.argv[1])  # imported before setuid: only root may be able to read it
os.setuid(65534)
main(sys.argv[1:], prog_name='progressd')
"""
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is in a private directory
        call = [sys.executable, "-c", code, *arguments, "--state-dir", directory]
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=PATIENCE)
    said = f"Error: Invalid value for '--state-dir': Directory '{directory}' is not readable.\n"
    assert (done.returncode, done.stderr.endswith(said)) == (2, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_progressd(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_PROGRESSD_COMPLETE=" in result.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("progressd ", set(COMMANDS)),
        ("progressd serve --log-level ", {"debug", "info", "warning", "error"}),
        ("progressd watch --url http://127.0.0.1:1 ", set()),
    ],
)
def test_shell_completion(words: str, found: set[str]) -> None:
    result = program(_PROGRESSD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split())))
    assert {line.partition(",")[2] for line in result.stdout.split()} == found
    assert result.stderr == ""


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
def test_a_dry_run_needs_no_systemd() -> None:
    why = "systemd is not running here: start the daemon with progressd serve"
    told = run("install", "--dry-run")
    assert (told.exit_code, told.stderr) == (0, f"Not possible here: {why}.\n\n")
    assert told.stdout.startswith("This will:\n  - write /etc/systemd/system/progressd-ingest.socket\n")
    refused = run("install", "--yes")
    assert (refused.exit_code, refused.output) == (1, f"Error: {why}\n")
