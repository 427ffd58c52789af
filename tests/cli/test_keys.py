"""The commands against a daemon that requires keys."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import Result
from progressd.auth.api_keys import new_secret
from progressd.cli.remote import Remote
from support import cli, keys
from support.growth import fill
from support.serving import PATIENCE, ServedDaemon, served_daemon

CONFIG = """
[auth]
required = true

[pipelines.copy]
command = ["cp", "{input}", "{output}"]
accept = ["*/*"]
"""
ABSENT = "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"
GIVE = "set PROGRESSD_KEY or --key-file (progressd keys add NAME on the daemon's machine makes a key)"
OTHER = "use another key with PROGRESSD_KEY or --key-file"


class Locked(NamedTuple):
    """A daemon that requires keys, and its keys."""

    served: ServedDaemon
    keys_file: Path
    key: str
    reader: str
    brief: str
    writer: str

    @property
    def url(self) -> str:
        return self.served.url

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request with the key, and return the response's JSON."""
        return self.served.request(method, path, headers=keys.bearer(self.key), **options).json()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    state_dir = tmp_path_factory.mktemp("daemon") / "state"
    keys_file = state_dir / "keys.json"
    key, reader = keys.add(keys_file, "ops", "read", "write"), keys.add(keys_file, "look", "read")
    brief, writer = keys.add(keys_file, "brief", "read"), keys.add(keys_file, "send", "write")
    with served_daemon(state_dir, config=CONFIG) as daemon:
        yield Locked(daemon, keys_file, key, reader, brief, writer)


def run(locked: Locked, *arguments: str, **environ: str) -> Result:
    return cli.run(*arguments, PROGRESSD_URL=locked.url, **environ)


def submitted(locked: Locked) -> str:
    result = run(locked, "submit", __file__, "--pipeline", "copy", "--watch", PROGRESSD_KEY=locked.key)
    assert result.exit_code == 0, result.output
    return result.stdout.split()[0]


def test_every_command_works_with_a_key(locked: Locked) -> None:
    job_id = submitted(locked)
    environ = {"PROGRESSD_KEY": locked.key}
    assert job_id in run(locked, "jobs", **environ).stdout
    assert "completed" in run(locked, "watch", job_id, **environ).stdout
    assert run(locked, "delete", job_id, **environ).stdout == f"{job_id} deleted\n"
    made = locked.request("POST", "/api/jobs", json={"kind": "x"})
    assert run(locked, "emit", "--job", made["id"], "--step", "3", "Three", **environ).exit_code == 0
    assert run(locked, "cancel", made["id"], **environ).stdout.endswith(" cancelled\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs"],
        ["watch"],
        ["watch", ABSENT],
        ["submit", __file__, __file__],
        ["cancel", ABSENT],
        ["retry", ABSENT],
        ["delete", ABSENT],
        ["emit", "--job", ABSENT, "Copying"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_missing_or_wrong_key_is_an_error(arguments: list[str], locked: Locked) -> None:
    without = run(locked, *arguments)
    assert without.exit_code == 1
    assert without.stderr == f"Error: {locked.url} requires a key: {GIVE}\n"
    secret = new_secret()
    wrong = run(locked, *arguments, PROGRESSD_KEY=secret)
    assert wrong.exit_code == 1
    assert wrong.stderr == f"Error: the key is unknown or has been revoked: {OTHER}\n"


def test_a_missing_scope_is_an_error(locked: Locked) -> None:
    refused = run(locked, "submit", __file__, "--pipeline", "copy", PROGRESSD_KEY=locked.reader)
    assert refused.exit_code == 1
    assert f"the scope write is required: this key has read: {OTHER}" in refused.stderr


def test_the_command_line_precedes_the_environment(locked: Locked, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"{locked.reader}\n")
    wrong.write_text(f"{new_secret()}\n")
    good = [
        run(locked, "jobs", PROGRESSD_KEY_FILE=str(right)),
        run(locked, "jobs", "--key-file", str(right), PROGRESSD_KEY=new_secret()),
        run(locked, "jobs", "--key", locked.reader, PROGRESSD_KEY_FILE=str(wrong)),
        run(locked, "jobs", PROGRESSD_KEY=locked.reader, PROGRESSD_KEY_FILE=str(wrong)),
    ]
    assert [result.exit_code for result in good] == [0, 0, 0, 0]


def test_offline_commands_need_no_key(tmp_path: Path) -> None:
    environ = {"PROGRESSD_KEY_FILE": str(tmp_path / "none")}
    fill(tmp_path / "progressd.db", 1)
    assert cli.run("jobs", "export", "--state-dir", tmp_path, **environ).exit_code == 0
    assert (
        cli.run("jobs", **environ).output
        == f"Error: cannot read the key in {tmp_path}/none: No such file or directory\n"
    )


@pytest.mark.parametrize("text", ["pgd_a b", "pgd_a\nX-Evil: 1", "pgd_ö"])
def test_an_invalid_key_is_not_shown(text: str, locked: Locked) -> None:
    for result in (run(locked, "jobs", PROGRESSD_KEY=text), run(locked, "watch", PROGRESSD_KEY=text)):
        assert result.exit_code == 1
        assert result.output.startswith("Error: the key is invalid")
        assert "pgd_" not in result.output


def test_a_command_inherits_the_key(locked: Locked, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(locked.key)
    script = f"{sys.executable} -m progressd emit --step 7 --total 9 Seven"
    done = cli.program("run", "--key-file", path, "--name", "told", "sh", "-c", script, PROGRESSD_URL=locked.url)
    assert (done.returncode, done.stderr) == (0, "")
    [job] = locked.request("GET", "/api/jobs?kind=sh")["jobs"]
    assert (job["status"], job["progress"]["step_name"]) == ("completed", "Seven")


COUNTED = ("-p", r"(?P<current>\d)/(?P<total>\d)")
COUNTING = "while :; do echo 3/9; sleep 0.05; done"


def test_a_write_key_receives_the_cancellation(locked: Locked) -> None:
    call = [*cli.PROGRESSD, "run", *COUNTED, "sh", "-c", f"echo $PROGRESSD_JOB_ID; {COUNTING}"]
    environ = {**os.environ, "PROGRESSD_URL": locked.url, "PROGRESSD_KEY": locked.writer}
    with cli.started(call, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().strip()
        assert locked.request("DELETE", f"/api/jobs/{job_id}")["status"] == "cancelled"
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.startswith(f"progressd: job {job_id} was cancelled: stopping the command\n")


def test_a_command_runs_without_a_key(locked: Locked) -> None:
    done = cli.program("run", "sh", "-c", "exit 4", PROGRESSD_URL=locked.url)
    said = f"progressd: {locked.url} requires a key: {GIVE}\n"
    assert (done.returncode, done.stderr) == (4, said)


def test_shell_completion_uses_the_key(locked: Locked) -> None:
    job_id = submitted(locked)
    words = {"COMP_WORDS": f"progressd watch {job_id[:8]}", "COMP_CWORD": "2", "_PROGRESSD_COMPLETE": "bash_complete"}
    found = cli.program(PROGRESSD_URL=locked.url, PROGRESSD_KEY=locked.reader, **words)
    assert found.stdout == f"plain,{job_id}\n"


def test_revoking_a_key_ends_its_watchers(locked: Locked) -> None:
    locked.request("POST", "/api/jobs", json={"kind": "x"})
    call = [*cli.PROGRESSD, "watch"]
    environ = {**os.environ, "PROGRESSD_URL": locked.url, "PROGRESSD_KEY": locked.brief}
    with cli.started(call, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() != ""
        keys.revoke(locked.keys_file, "brief")
        _, said = watcher.communicate(timeout=PATIENCE)
    assert (watcher.returncode, said) == (1, f"Error: the key for {locked.url} has expired or was revoked: {OTHER}\n")


def test_the_repr_hides_the_key() -> None:
    assert "pgd_x" not in repr(Remote("http://127.0.0.1:8080", "pgd_x"))
