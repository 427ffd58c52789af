"""The commands against a real daemon."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from progressd.client.rest import RestClient
from support.cli import PROGRESSD, program, run
from support.serving import PATIENCE, ServedDaemon, served_daemon

PIPELINES = """
[pipelines.copy]
command = ["cp", "{{input}}", "{{output}}"]
accept = ["*/*"]

[pipelines.broken]
command = ["sh", "-c", "exit 3"]
accept = ["*/*"]

[pipelines.gated]
command = ["sh", "-c", '''
gate=$GATE-$PROGRESSD_JOB_ID
[ -p "$gate" ] || mkfifo "$gate"
echo "1/2 half"
read go <"$gate"
echo "2/2 whole"
cp "$0" "$1"
''', "{{input}}", "{{output}}"]
accept = ["*/*"]
progress_pattern = '(?P<current>\\d)/(?P<total>\\d) (?P<step>.*)'
environment = {{ GATE = "{gate}" }}
"""


class Daemon:
    """A daemon, and commands that talk to it."""

    def __init__(self, served: ServedDaemon, directory: Path) -> None:
        self.served = served
        self.url = served.url
        self.gate = directory / "gate"
        self.text = str(directory / "text")

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "PROGRESSD_URL": self.url}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this process, for tests without signals, pipes and terminals."""
        result = run(*arguments, PROGRESSD_URL=self.url)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command in its own process."""
        process = subprocess.Popen(
            command(*arguments), env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def submit(self, pipeline: str) -> str:
        result = self.run("submit", self.text, "--pipeline", pipeline)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def open_gate(self, job_id: str) -> None:
        """Let a gated job continue, once it has reported that it is half done."""
        self.gate.with_name(f"{self.gate.name}-{job_id}").write_text("go\n")


def command(*arguments: str) -> list[str]:
    return [*PROGRESSD, *arguments]


@contextlib.contextmanager
def started(directory: Path, port: int = 0) -> Iterator[Daemon]:
    """Run a daemon that may have run in this directory before. It must exit without an error, unless it is killed."""
    gate = directory / "gate"
    (directory / "text").write_text("some text\n")
    config = PIPELINES.format(gate=gate)
    with (
        (directory / "log").open("a") as log,
        served_daemon(directory / "state", config=config, port=port, log=log) as served,
    ):
        yield Daemon(served, directory)
    assert served.process.returncode in (0, -signal.SIGKILL), (directory / "log").read_text()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that do not harm it."""
    with started(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read lines up to the first that contains the text."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], f"{text!r} did not come: {lines}"
    return lines


def test_arguments_need_not_be_text(daemon: Daemon) -> None:
    job_id = daemon.run("submit", daemon.text, "--pipeline", "copy", "--label", "a=caf\udce9").stdout.strip()
    assert job_id[:8] in daemon.run("jobs", "--label", "a=caf\udce9").stdout
    assert job_id[:8] not in daemon.run("jobs", "--kind", "caf\udce9").stdout
    for given in (("--pipeline", "caf\udce9"), ("--pipeline", "copy", "--option", "a=caf\udce9")):
        refused = daemon.run("submit", daemon.text, *given)
        assert refused.returncode == 1
        assert f"Error: {daemon.text}: " in refused.stderr


def test_submit_watch_list_and_download(daemon: Daemon) -> None:
    job_id = daemon.submit("gated")
    with daemon.running("watch", job_id) as watch:
        before = read_until(watch, "half")
        daemon.open_gate(job_id)
        rest, errors = watch.communicate(timeout=PATIENCE)
    assert before[0] == f"{job_id} status_change queued -> processing\n"
    assert before[1].startswith(f"{job_id} progress 50% 1/2 half")
    lines = rest.splitlines()
    assert lines[-2] == f"{job_id} status_change processing -> completed"
    found = re.fullmatch(rf"{job_id} completed in .* s: (http://.*/download)", lines[-1])
    assert found is not None
    with urllib.request.urlopen(found[1]) as answer:
        assert answer.read() == b"some text\n"
    assert (watch.returncode, errors) == (0, "")
    listed = daemon.run("jobs").stdout.splitlines()
    assert listed[0].split() == ["JOB", "STATUS", "DONE", "CREATED", "NAME"]
    assert re.fullmatch(rf"{job_id}  completed  100%  .*  text", listed[1])
    assert json.loads(daemon.run("jobs", "--json", "--limit", "1").stdout)["job_id"] == job_id
    assert job_id in daemon.run("jobs", "--status", "completed").stdout
    assert job_id not in daemon.run("jobs", "--status", "failed").stdout


def test_watching_a_finished_job_returns_its_status(daemon: Daemon) -> None:
    good = daemon.run("submit", daemon.text, "--pipeline", "copy", "--watch")
    assert (good.returncode, good.stderr) == (0, "")
    job_id, *lines = good.stdout.splitlines()
    assert lines[-1].startswith(f"{job_id} completed")
    assert daemon.run("watch", job_id).returncode == 0
    bad = daemon.run("submit", daemon.text, daemon.text, "--pipeline", "broken", "--watch")
    assert bad.returncode == 1
    assert bad.stdout.count(" error Pipeline error: ") == 2


def test_json_is_printed_as_it_arrives(daemon: Daemon) -> None:
    job_id = daemon.run("submit", daemon.text, "--pipeline", "copy", "--watch").stdout.split()[0]
    lines = daemon.run("watch", job_id, "--json").stdout.splitlines()
    messages = [json.loads(line) for line in lines]
    assert [message["type"] for message in messages] == ["status_change", "status_change", "completed"]
    assert lines[0].startswith(f'{{"type":"status_change","job_id":"{job_id}","data":{{"old_status":"queued",')


def test_a_cancelled_job_returns_status_1(daemon: Daemon) -> None:
    job_id = daemon.submit("gated")
    with daemon.running("watch", job_id) as watch:
        read_until(watch, "half")
        assert daemon.run("cancel", job_id).stdout == f"{job_id} cancelled\n"
        rest, _ = watch.communicate(timeout=PATIENCE)
    assert rest.splitlines()[-1] == f"{job_id} status_change processing -> cancelled"
    assert watch.returncode == 1
    again = daemon.run("cancel", job_id)
    assert (again.returncode, again.stderr) == (1, f"Error: job {job_id} is already cancelled\n")


def test_a_cancelled_job_is_retried(daemon: Daemon) -> None:
    job_id = daemon.submit("gated")
    assert daemon.run("cancel", job_id).returncode == 0
    with daemon.running("retry", job_id, "--watch") as again:
        [first, *_] = read_until(again, "half")
        assert first.strip() != job_id
        daemon.open_gate(first.strip())
        rest, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0
    assert rest.splitlines()[-1].startswith(f"{first.strip()} completed")
    refused = daemon.run("retry", first.strip())
    assert refused.returncode == 1
    assert "only failed or cancelled jobs can be retried" in refused.stderr


def test_only_finished_jobs_are_deleted(daemon: Daemon) -> None:
    done = daemon.run("submit", daemon.text, "--pipeline", "copy", "--watch").stdout.split()[0]
    under_way = daemon.submit("gated")
    deleted = daemon.run("delete", done, under_way)
    assert (deleted.returncode, deleted.stdout) == (1, f"{done} deleted\n")
    assert deleted.stderr.startswith(f"Error: job {under_way} is ")
    assert "only finished jobs can be deleted" in deleted.stderr
    assert daemon.run("delete", done).stderr == f"Error: no job {done}\n"
    assert done not in daemon.run("jobs").stdout
    daemon.run("cancel", under_way)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_sets_the_status_of_a_watcher(daemon: Daemon, number: signal.Signals, status: int) -> None:
    with daemon.running("watch") as watch:
        job_id = daemon.submit("gated")
        read_until(watch, "half")
        watch.send_signal(number)
        assert watch.communicate(timeout=PATIENCE) == ("", "")
        assert watch.returncode == status
    daemon.run("cancel", job_id)


def test_a_closed_pipe_ends_a_watcher_silently(daemon: Daemon) -> None:
    with daemon.running("watch") as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        job_id = daemon.submit("gated")
        read_until(watch, "half")
        watch.stdout.close()
        daemon.open_gate(job_id)
        assert watch.wait(timeout=PATIENCE) == 1
        assert watch.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (["jobs"], "1"),
        (["jobs", "export", "--state-dir", "{state_dir}"], ""),
        (["watch", "--json"], ""),
        (["--help"], ""),
    ],
)
def test_a_full_disk_is_an_error(daemon: Daemon, arguments: list[str], unbuffered: str) -> None:
    job_id = daemon.submit("gated")
    try:
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                command(*[argument.format(state_dir=daemon.served.state_dir) for argument in arguments]),
                env={**daemon.environ, "PYTHONUNBUFFERED": unbuffered},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
    finally:
        daemon.run("cancel", job_id)
    assert (ended.returncode, ended.stderr) == (1, "Error: cannot write the output: No space left on device\n")


def test_a_watcher_survives_a_crash_of_the_daemon(tmp_path: Path, free_port: int) -> None:
    with started(tmp_path, free_port) as mortal:
        job_id = mortal.submit("gated")
        with mortal.running("watch", job_id) as watch:
            read_until(watch, "half")
            mortal.served.kill()
            with started(tmp_path, free_port) as again:
                read_until(watch, "processing -> queued")
                read_until(watch, "half")
                again.open_gate(job_id)
                rest, errors = watch.communicate(timeout=PATIENCE)
    assert rest.splitlines()[-1].startswith(f"{job_id} completed")
    assert watch.returncode == 0
    assert errors == "connection lost; reconnecting\nreconnected\n"


def test_a_large_file_arrives_whole(daemon: Daemon, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "large").write_bytes(content)
    result = daemon.run("submit", str(tmp_path / "large"), "--pipeline", "copy", "--watch")
    assert result.returncode == 0, result.stderr
    with urllib.request.urlopen(result.stdout.split()[-1]) as answer:
        assert answer.read() == content


def test_submit_sends_labels_and_priority(daemon: Daemon) -> None:
    labels = ["--label", "team=scan", "--label", "for=me"]
    done = daemon.run("submit", daemon.text, "--pipeline", "copy", "--priority", "low", *labels, "--watch")
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.split()[0]
    assert job_id[:8] in daemon.run("jobs", "--label", "for=me").stdout


def test_a_rejected_file_does_not_stop_the_others(daemon: Daemon) -> None:
    result = daemon.run("submit", daemon.text, daemon.text, "--option", "dpi=300", "--pipeline", "copy")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count(f'Error: {daemon.text}: there is no option "dpi": this pipeline has none\n') == 2


@pytest.mark.parametrize("job_id", ["82", "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"])
@pytest.mark.parametrize("name", ["watch", "cancel", "show", "logs"])
def test_an_unknown_job_is_an_error(daemon: Daemon, name: str, job_id: str) -> None:
    result = daemon.run(name, job_id)
    assert result.returncode == 1
    assert re.fullmatch(
        rf"Error: ('82' is not a job id: .* its first eight characters|no job {job_id})\n", result.stderr
    )


def test_job_ids_can_be_abbreviated(daemon: Daemon) -> None:
    first, second = "abcdef01-0000-4000-8000-000000000000", "abcdef01-1000-4000-8000-000000000000"
    with RestClient(daemon.url) as client:
        for job_id in (first, second):
            client.register({"id": job_id, "kind": "x", "labels": {"host": job_id}})
    several = daemon.run("cancel", first[:8])
    assert (several.returncode, several.stderr) == (
        1,
        f"Error: 2 job ids begin with abcdef01: {second}, {first} (give more characters)\n",
    )
    assert daemon.run("emit", "--job", first[:10], "--step", "1", "One").returncode == 0
    assert daemon.run("cancel", first[:10].upper()).stdout == f"{first} cancelled\n"
    assert daemon.run("watch", first[:10]).stdout.startswith(f"{first} ")
    assert daemon.run("jobs", "--label", f"host={first}", "--kind", "x", "--json").stdout.count("\n") == 1
    assert daemon.run("jobs", "--label", f"host={first}", "--kind", "y").stdout.count("\n") == 1
    gone = daemon.run("delete", "00000000-9", first[:10])
    assert (gone.returncode, gone.stdout) == (1, f"{first} deleted\n")
    assert gone.stderr == "Error: no job id begins with 00000000-9 (among the newest 1000 jobs)\n"
    daemon.run("cancel", second)


def test_the_list_shows_the_progress_of_failed_jobs(daemon: Daemon) -> None:
    failed, cancelled = "abcdef02-0000-4000-8000-000000000000", "abcdef02-1000-4000-8000-000000000000"
    with RestClient(daemon.url) as client:
        for job_id in (failed, cancelled):
            client.register({"id": job_id, "kind": "half"})
    daemon.run("emit", "--job", failed, "--step", "1", "--total", "4", "One")
    daemon.run("emit", "--job", failed, "--failed", "no more tape")
    daemon.run("cancel", cancelled)
    listed = daemon.run("jobs", "--kind", "half").stdout
    assert re.search(rf"^{failed}  failed +25%  ", listed, re.MULTILINE), listed
    assert re.search(rf"^{cancelled}  cancelled +-  ", listed, re.MULTILINE), listed


@pytest.mark.parametrize("words", ["watch {}", "cancel "])
def test_the_shell_completes_ids_of_suitable_jobs(daemon: Daemon, words: str) -> None:
    daemon.run("submit", daemon.text, "--pipeline", "copy", "--watch")
    job_id = daemon.submit("gated")
    given = {"COMP_WORDS": f"progressd {words.format(job_id[:8])}", "COMP_CWORD": "2"}
    result = program(PROGRESSD_URL=daemon.url, _PROGRESSD_COMPLETE="bash_complete", **given)
    daemon.run("cancel", job_id)
    assert result.stdout == f"plain,{job_id}\n"


def table(daemon: Daemon, width: int) -> list[str]:
    """The newest job, as a terminal of this width shows it."""
    terminal, other_end = pty.openpty()
    environ = {**daemon.environ, "TERM": "xterm", "COLUMNS": str(width)}
    with subprocess.Popen(command("jobs", "--limit", "1"), env=environ, stdout=other_end) as jobs:
        os.close(other_end)
        shown = b""
        with contextlib.suppress(OSError):  # EIO at the end
            while data := os.read(terminal, 65536):
                shown += data
        assert jobs.wait(PATIENCE) == 0
    os.close(terminal)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()


def test_the_list_shows_errors(daemon: Daemon) -> None:
    job_id = daemon.run("submit", daemon.text, "--pipeline", "broken", "--watch").stdout.split()[0]
    why = "Pipeline error: broken failed with exit status 3"
    [line] = [line for line in daemon.run("jobs", "--status", "failed").stdout.splitlines() if line.startswith(job_id)]
    assert line.endswith(f"  text: {why}")
    for width in (200, 30):
        assert table(daemon, width)[2] == f"  {why}"


def test_the_list_shows_external_results(daemon: Daemon) -> None:
    url = f"https://files.example/{'long' * 30}.pdf"
    with RestClient(daemon.url) as client:
        job_id = client.register({"kind": "report"})["id"]
        client.report(job_id, {"type": "progress", "data": {"current_step": 1, "total_steps": 1}})
        client.report(job_id, {"type": "completed", "data": {"output_path": url}})
    assert daemon.run("jobs", "--limit", "1").stdout.splitlines()[1].endswith(f"  report: {url}")
    assert table(daemon, 80)[2] == f"  {url}"
    assert daemon.run("watch", job_id).stdout.splitlines()[-1].endswith(f": {url}")


@pytest.mark.parametrize("width", [80, 200, 30])
def test_the_list_never_wraps(daemon: Daemon, width: int, tmp_path: Path) -> None:
    path = tmp_path / f"{'long' * 30}.txt"
    path.write_text("x")
    job_id = daemon.run("submit", str(path), "--pipeline", "copy", "--watch").stdout.split()[0]
    head, line = table(daemon, width)
    assert head.startswith("JOB")
    assert line.startswith(job_id)
    assert len(line) <= max(width, len(job_id))
    assert line.endswith("…") == (width == 80)


def test_a_terminal_shows_bars(daemon: Daemon) -> None:
    job_id = daemon.submit("gated")
    terminal, other_end = pty.openpty()
    environ = {**daemon.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command("watch", job_id), env=environ, stdout=other_end) as watch:
        os.close(other_end)
        shown = b""
        while b"half" not in shown or b" 50%" not in shown:
            shown += os.read(terminal, 65536)
        daemon.open_gate(job_id)
        with contextlib.suppress(OSError):  # EIO at the end
            while data := os.read(terminal, 65536):
                shown += data
        assert watch.wait(PATIENCE) == 0
    os.close(terminal)
    assert "━".encode() in shown
    assert b"completed" in shown
    assert b"\x1b[?25h" in shown  # the cursor is back


def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = program("serve", "--port", str(port), "--state-dir", tmp_path / "state")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(rf"Error: port {port} of 127.0.0.1 is in use: .*--port \d+\n", result.stderr)


def test_the_daemon_logs_to_stderr(tmp_path: Path) -> None:
    with started(tmp_path) as mortal:
        pass
    assert mortal.served.process.returncode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert all(re.match(r"timestamp=\S+Z level=\w+ message=", line) for line in lines)
    assert "message=stopped" in lines[-1]
