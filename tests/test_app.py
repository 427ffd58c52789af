"""The daemon as a process: its start, signals, recovery after SIGKILL, and systemd."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from support.cli import program
from support.daemon import progress, registered
from support.peer import upgrade
from support.samples import ID
from support.serving import PATIENCE, ServedDaemon, served_daemon
from support.submitting import PDF
from support.waiting import alive, until
from trio_websocket import ConnectionClosed, wrap_client_stream

PIPELINES = '''
[pipelines.copy]
command = ["cp", "{input}", "{output}"]

[pipelines.gated]
command = ["sh", "-c", """
    echo $$ > "$DIR/pid-$PROGRESSD_JOB_ID"
    echo 1/2
    until [ -e "$DIR/go" ]; do sleep 0.01; done
    cp "$0" "$1"
""", "{input}", "{output}"]
progress_pattern = '(?P<current>\\d)/(?P<total>\\d)'
environment = { DIR = "DIRECTORY" }

[pipelines.stubborn]
command = ["sh", "-c", 'trap "" TERM; echo $$ > "$DIR/pid-$PROGRESSD_JOB_ID"; while :; do sleep 60; done', "{input}"]
environment = { DIR = "DIRECTORY" }

[pipelines.alone]
command = ["sh", "-c", """
    exec 9> "$DIR/alone"
    flock --nonblock 9 || exit 9
    trap "" TERM
    setsid sh -c 'echo $$ > "$DIR/helper-$PROGRESSD_JOB_ID"; exec sleep 1000' &
    echo $$ > "$DIR/pid-$PROGRESSD_JOB_ID"
    echo half > "$1"
    until [ -e "$DIR/go" ]; do sleep 0.01; done
    cp "$0" "$1"
    kill $!
""", "{input}", "{output}"]
environment = { DIR = "DIRECTORY" }

[pipelines.inside]
command = ["sh", "-c", 'env > "$1"; ls /proc/self/fd >> "$1"', "{input}", "{output}"]
output = "inside.txt"

[runner]
kill_grace = 0.3
concurrency = 2
'''


@pytest.fixture
def config(tmp_path: Path) -> Iterator[str]:
    yield PIPELINES.replace("DIRECTORY", str(tmp_path))
    (tmp_path / "go").touch()  # ends the processes of a killed daemon


@pytest.fixture
def daemon(tmp_path: Path, config: str) -> Iterator[ServedDaemon]:
    with served_daemon(tmp_path / "state", config=config) as daemon:
        yield daemon


def child_of(directory: Path, job_id: str) -> int:
    """Wait for the program of a job, and return its process id."""
    path = directory / f"pid-{job_id}"
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a daemon that fails to start."""
    return program("serve", "--port", "0", *arguments)


def test_a_stop_waits_for_jobs_until_a_second_signal(daemon: ServedDaemon, tmp_path: Path) -> None:
    job_id = daemon.submit("stubborn")
    child = child_of(tmp_path, job_id)
    daemon.process.send_signal(signal.SIGTERM)
    until(lambda: daemon.request("GET", "/api/health/ready").status_code == 503)
    assert alive(child)
    assert daemon.process.poll() is None
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(PATIENCE) == 0
    assert not alive(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_during_a_stop_change_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with (tmp_path / "log").open("w") as log, served_daemon(tmp_path / "state", log=log) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), PATIENCE) as watcher:
            watcher.sendall(upgrade(headers={"Host": f"127.0.0.1:{daemon.port}"}))
            daemon.process.send_signal(signal.SIGINT if number is signal.SIGINT else signal.SIGTERM)
            data = b""
            while b"\x03\xe9" not in data:  # close code 1001; the watcher does not reply
                received = watcher.recv(1000)
                assert received, data
                data += received
        deadline = time.monotonic() + PATIENCE
        while daemon.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            daemon.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                daemon.process.wait(0.001)
        assert daemon.process.returncode == 0
        assert daemon.process.stdout is not None
        assert daemon.process.stdout.read() == ""
        assert not (daemon.state_dir / "ingest.sock").exists()
    assert "stopped" in (tmp_path / "log").read_text().splitlines()[-1]


def test_a_config_file_may_be_a_pipe(tmp_path: Path, config: str) -> None:
    pipe, log = tmp_path / "pipe.toml", tmp_path / "log"
    os.mkfifo(pipe)
    with (
        subprocess.Popen(["sh", "-c", 'printf %s "$0" > "$1"', config, pipe]) as writing,
        log.open("w") as written,
        served_daemon(tmp_path / "state", config=pipe, log=written) as daemon,
    ):
        assert writing.wait(PATIENCE) == 0
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "settings not reloaded" in log.read_text())
        assert f"cannot read the config file {pipe}: it is not a regular file" in log.read_text()
        daemon.completed(daemon.submit("copy"))


def open_to_others(state_dir: Path) -> list[str]:
    """Return the files in a state directory that other users may access."""
    found = [path for path in sorted(state_dir.rglob("*")) if not path.is_socket()]
    assert state_dir / "progressd.db-wal" in found
    return [f"{path} {mode:o}" for path in found if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077]


def test_the_state_directory_is_private_to_one_daemon(tmp_path: Path, config: str) -> None:
    state_dir = tmp_path / "state"
    for directory in (state_dir, state_dir / "jobs", state_dir / "uploads"):
        directory.mkdir(mode=0o755)
    with served_daemon(state_dir, config=config) as daemon:
        running = daemon.submit("gated")
        child_of(tmp_path, running)
        assert open_to_others(state_dir) == []
        rejected = serve("--state-dir", state_dir)
        assert (rejected.returncode, rejected.stdout) == (1, "")
        assert rejected.stderr == (
            f"Error: another progressd uses the state directory {state_dir}: stop it, or choose another with"
            " --state-dir\n"
        )
        (tmp_path / "go").touch()
        daemon.completed(running)
        assert open_to_others(state_dir) == []
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o755


def test_a_foreign_database_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "progressd.db").write_bytes(b"not a database, and precious" * 100)
    rejected = serve("--state-dir", tmp_path)
    assert (rejected.returncode, rejected.stdout) == (1, "")
    assert rejected.stderr.startswith(f"Error: the database {tmp_path}/progressd.db is damaged or is not a database")
    assert rejected.stderr.count("\n") == 1
    assert (tmp_path / "progressd.db").read_bytes().startswith(b"not a database, and precious")


async def messages(daemon: ServedDaemon, path: str) -> list[dict[str, Any]]:
    """Return what a watcher receives until the stream ends."""
    host, port = daemon.url.removeprefix("http://").split(":")
    received = []
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream(host, int(port)) as stream, trio.open_nursery() as nursery:
            websocket = await wrap_client_stream(nursery, stream, host, path)
            try:
                while True:
                    received.append(json.loads(await websocket.get_message()))
            except ConnectionClosed:
                nursery.cancel_scope.cancel()
    return received


async def test_a_killed_daemon_recovers_its_jobs(tmp_path: Path, config: str) -> None:
    state_dir = tmp_path / "state"
    with served_daemon(state_dir, config=config.replace("kill_grace = 0.3", "kill_grace = 1000")) as daemon:
        done = daemon.submit("copy")
        before = daemon.completed(done)
        daemon.request("POST", "/api/jobs", json={"id": ID, "kind": "scan"})
        daemon.request("POST", "/api/events", json=progress(ID, 5, 12))
        cancelled = daemon.submit("alone")
        orphans = [child_of(tmp_path, cancelled)]
        assert daemon.request("DELETE", f"/api/jobs/{cancelled}").status_code == 200
        running = daemon.submit("gated")
        orphans.append(child_of(tmp_path, running))
        until(lambda: daemon.job(running)["progress"]["percent"] == 50)
        cursor = daemon.job(running)["cursor"]
        daemon.kill()
        assert all(map(alive, orphans))
    (tmp_path / f"pid-{running}").unlink()
    with served_daemon(state_dir, config=config) as daemon:
        assert daemon.job(done) == before
        result = daemon.request("GET", f"/api/jobs/{done}/download")
        assert (result.status_code, result.content) == (200, PDF)
        child_of(tmp_path, running)
        assert not any(map(alive, orphans))
        assert daemon.job(running)["status"] == "processing"
        assert (daemon.job(ID)["status"], daemon.job(cancelled)["status"]) == ("processing", "cancelled")
        (tmp_path / "go").touch()
        ended = daemon.completed(running)
        assert ended["attempt"] == 2
        assert daemon.request("GET", ended["output_path"]).content == PDF
        resumed = await messages(daemon, f"/ws/jobs/{running}?since={cursor}")
    changes = [one["data"]["new_status"] for one in resumed if one["type"] == "status_change"]
    assert changes == ["queued", "processing", "completed"]
    assert resumed[-1]["type"] == "completed"
    assert not any(one["type"] == "resync" for one in resumed)


def test_children_of_killed_daemons_never_run_together(tmp_path: Path, config: str) -> None:
    state_dir = tmp_path / "state"
    before: set[int] = set()
    job_id = ""
    config += "max_attempts = 2\n"
    for attempt in (1, 2):
        with served_daemon(state_dir, config=config) as daemon:
            job_id = job_id or daemon.submit("alone")
            child = child_of(tmp_path, job_id)
            helper = tmp_path / f"helper-{job_id}"
            until(lambda path=helper: path.exists() and path.read_text().endswith("\n"))  # type: ignore[misc]
            assert not any(map(alive, before))
            before |= {child, int(helper.read_text())}
            job = daemon.job(job_id)
            assert (job["status"], job["attempt"]) == ("processing", attempt)
            assert daemon.request("GET", f"/api/jobs/{job_id}/download").status_code == 409
            daemon.process.kill()
            daemon.process.wait(PATIENCE)
        (tmp_path / f"pid-{job_id}").unlink()
        helper.unlink()
    with served_daemon(state_dir, config=config) as daemon:
        until(lambda: daemon.job(job_id)["status"] == "failed")
        assert daemon.job(job_id)["error"] == "interrupted"
        assert daemon.request("GET", f"/api/jobs/{job_id}/download").status_code == 409
        assert not any(map(alive, before))
        assert {path.name for path in (state_dir / "jobs" / job_id).iterdir()} == {"input", "log"}
        assert list((state_dir / "children").iterdir()) == []


# systemd

SOCKETS = ("given.sock", "another.sock")


@contextmanager
def passing_sockets(command: Sequence[str], directory: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """Pass listening sockets as systemd does; tests/systemd uses the real one."""
    with socket.create_server(("127.0.0.1", port)) as tcp, ExitStack() as opened:
        given = [tcp.fileno()]
        for name in SOCKETS:
            unix = opened.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(str(directory / name))
            unix.listen()
            given.append(unix.fileno())
        passed = " ".join(f"{3 + number}<&{descriptor}" for number, descriptor in enumerate(given))
        script = f'exec {passed}; LISTEN_PID=$$ exec env "$@"'
        variables = [f"NOTIFY_SOCKET={directory}/notify", "LISTEN_FDS=3", "LISTEN_FDNAMES=http:ingest:ingest"]
        with subprocess.Popen(
            ["bash", "-c", script, "bash", *variables, *command], pass_fds=given, text=True
        ) as process:
            yield process


def test_systemd_passes_sockets_and_is_notified(tmp_path: Path, config: str, free_port: int) -> None:
    (tmp_path / "config.toml").write_text(config)
    arguments = ["--config", str(tmp_path / "config.toml"), "--state-dir", str(tmp_path / "state")]
    command = [sys.executable, "-m", "progressd", "serve", *arguments]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE)
        with passing_sockets(command, tmp_path, free_port) as process:
            daemon = ServedDaemon(f"http://127.0.0.1:{free_port}", process, tmp_path / "state")
            try:
                assert daemon.request("GET", "/api/health/live").status_code == 200
                assert notified.recv(1000) == b"READY=1"
                assert notified.recv(1000) == b"STATUS=jobs: 0 running, 0 queued; watchers: 0"
                assert [report(tmp_path / name, registered(ID))["ok"] for name in SOCKETS] == [True, True]
                assert not (daemon.state_dir / "ingest.sock").exists()
                inside = daemon.request("GET", daemon.completed(daemon.submit("inside"))["output_path"]).text
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
        until(lambda: notified.recv(1000).startswith(b"STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000"))
    assert "PROGRESSD_JOB_ID=" in inside
    assert "LISTEN_" not in inside
    assert f"NOTIFY_SOCKET={tmp_path}" not in inside
    assert inside.split()[-4:] == ["0", "1", "2", "3"], "a pipeline has inherited descriptors"
    assert all((tmp_path / name).exists() for name in SOCKETS), "systemd owns these sockets"


def report(path: Path, event: dict[str, Any]) -> Any:
    """Report an event as a producer, and return the answer."""
    with socket.socket(socket.AF_UNIX) as producer:
        producer.settimeout(PATIENCE)
        producer.connect(str(path))
        producer.sendall(json.dumps({"ref": 1, **event}).encode() + b"\n")
        return json.loads(producer.makefile().readline())


# A daemon that cannot start threads after SIGUSR1, as in a cgroup at its task limit: the stack of a new thread exceeds
# the address space, and idle threads end at once.
WITHOUT_THREADS = """
import signal, sys, threading, trio
trio._core._thread_cache.IDLE_TIMEOUT = 0
signal.signal(signal.SIGUSR1, lambda *_: threading.stack_size(2**47))
from progressd.cli.main import main
main(["serve", "--port", "0", "--state-dir", sys.argv[1]])
"""


def test_a_daemon_without_threads_ends_with_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_THREADS, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        assert httpx.post(f"{url}/api/jobs", trust_env=False, verify=False).status_code == 201
        process.send_signal(signal.SIGUSR1)
        with suppress(httpx.TransportError):
            for _ in range(1000):
                httpx.post(f"{url}/api/jobs", trust_env=False, verify=False)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    # The error is the one of the thread, or one that Trio raises because of it.
    assert 'message="daemon failed" error="RuntimeError: ' in errors.splitlines()[-1]
