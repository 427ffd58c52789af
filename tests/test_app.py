"""The daemon as a process: start, stop, kill, restart, and systemd."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import progressd_pdf
import pytest
import trio
from support.daemon import progress, registered
from support.peer import upgrade
from support.samples import ID
from support.serving import PATIENCE, ServedDaemon, served_daemon
from support.submitting import PDF
from support.waiting import alive, until
from trio_websocket import ConnectionClosed, wrap_client_stream

SCAN = Path(progressd_pdf.__file__).with_name("scan") / "sample-scan.pdf"
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
'''


@pytest.fixture
def config(tmp_path: Path) -> Iterator[str]:
    yield PIPELINES.replace("DIRECTORY", str(tmp_path))
    (tmp_path / "go").touch()  # ends children of a killed daemon


@pytest.fixture
def daemon(tmp_path: Path, config: str) -> Iterator[ServedDaemon]:
    with served_daemon(tmp_path / "state", config=config) as daemon:
        yield daemon


def request(daemon: ServedDaemon, method: str, path: str, **what: Any) -> httpx.Response:
    return httpx.request(method, daemon.url + path, timeout=PATIENCE, trust_env=False, **what)


def submit(daemon: ServedDaemon, pipeline: str) -> str:
    response = request(daemon, "POST", "/api/convert", params={"pipeline": pipeline}, files={"file": ("book.pdf", PDF)})
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


def status(daemon: ServedDaemon, job_id: str) -> str:
    return str(request(daemon, "GET", f"/api/jobs/{job_id}").json()["status"])


def finished(daemon: ServedDaemon, job_id: str) -> dict[str, Any]:
    """Return the job once it has completed."""
    until(lambda: status(daemon, job_id) == "completed")
    job: dict[str, Any] = request(daemon, "GET", f"/api/jobs/{job_id}").json()
    return job


def child_of(directory: Path, job_id: str) -> int:
    """Return the process id of a job's program, once it runs."""
    path = directory / f"pid-{job_id}"
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Try to start a daemon that cannot start."""
    command = [sys.executable, "-m", "progressd", "serve", "--port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_daemon_with_status_0(daemon: ServedDaemon, number: signal.Signals) -> None:
    daemon.process.send_signal(number)
    assert daemon.process.wait(PATIENCE) == 0
    assert daemon.process.stdout is not None
    assert daemon.process.stdout.read() == ""
    assert not (daemon.state_dir / "ingest.sock").exists()


def test_a_second_signal_ends_the_wait_for_jobs(daemon: ServedDaemon, tmp_path: Path) -> None:
    job_id = submit(daemon, "stubborn")
    child = child_of(tmp_path, job_id)
    daemon.process.send_signal(signal.SIGTERM)
    until(lambda: request(daemon, "GET", "/api/health/ready").status_code == 503)
    assert alive(child)
    assert daemon.process.poll() is None
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(PATIENCE) == 0
    assert not alive(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_while_watchers_close_are_ignored(daemon: ServedDaemon, number: signal.Signals) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), PATIENCE) as watcher:
        watcher.sendall(upgrade(headers={"Host": f"127.0.0.1:{daemon.port}"}))
        daemon.process.send_signal(signal.SIGTERM)
        data = b""
        while b"\x03\xe9" not in data:  # close code 1001, to which this client does not reply
            received = watcher.recv(1000)
            assert received, data
            data += received
        daemon.process.send_signal(number)
    assert daemon.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_until_the_exit_are_ignored(tmp_path: Path, number: signal.Signals) -> None:
    with (tmp_path / "log").open("w") as log, served_daemon(tmp_path / "state", log=log) as daemon:
        daemon.process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + PATIENCE
        while daemon.process.poll() is None:
            assert time.monotonic() < give_up, "it does not end"
            with suppress(subprocess.TimeoutExpired):
                daemon.process.wait(0.001)
            daemon.process.send_signal(number)
        assert daemon.process.returncode == 0
    assert "stopped" in (tmp_path / "log").read_text().splitlines()[-1]


def test_the_config_file_may_be_a_pipe(tmp_path: Path, config: str) -> None:
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
        finished(daemon, submit(daemon, "copy"))


def open_to_others(state_dir: Path) -> list[str]:
    """Return what other users may read or change in a state directory."""
    found = [path for path in sorted(state_dir.rglob("*")) if not path.is_socket()]
    assert state_dir / "progressd.db-wal" in found
    return [f"{path} {mode:o}" for path in found if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077]


def test_other_users_cannot_read_the_state_directory(tmp_path: Path, config: str) -> None:
    state_dir = tmp_path / "state"
    for directory in (state_dir, state_dir / "jobs", state_dir / "uploads"):
        directory.mkdir(mode=0o755)
    with served_daemon(state_dir, config=config) as daemon:
        running = submit(daemon, "gated")
        child_of(tmp_path, running)
        assert open_to_others(state_dir) == []  # even while it writes
        finished(daemon, submit(daemon, "copy"))
        (tmp_path / "go").touch()
        finished(daemon, running)
        assert open_to_others(state_dir) == []
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o755


def test_a_state_directory_has_one_daemon(daemon: ServedDaemon) -> None:
    refused = serve("--state-dir", daemon.state_dir)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"Error: another progressd uses the state directory {daemon.state_dir}: stop it, or choose another with"
        " --state-dir\n"
    )
    assert request(daemon, "GET", "/api/health").status_code == 200


def test_an_invalid_store_has_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "progressd.db").write_bytes(b"not a database, and precious" * 100)
    refused = serve("--state-dir", tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"Error: the store {tmp_path}/progressd.db is damaged or is not a database")
    assert refused.stderr.count("\n") == 1
    assert (tmp_path / "progressd.db").read_bytes().startswith(b"not a database, and precious")


def test_a_killed_daemon_restarts_with_all_jobs(tmp_path: Path, config: str) -> None:
    state_dir = tmp_path / "state"
    with served_daemon(state_dir, config=config) as daemon:
        done = submit(daemon, "copy")
        before = finished(daemon, done)
        running = submit(daemon, "gated")
        orphan = child_of(tmp_path, running)
        request(daemon, "POST", "/api/jobs", json={"id": ID, "kind": "scan"})
        request(daemon, "POST", "/api/events", json=progress(ID, 5, 12))
        daemon.process.kill()
        assert daemon.process.wait(PATIENCE) == -signal.SIGKILL
    (tmp_path / f"pid-{running}").unlink()
    with served_daemon(state_dir, config=config) as daemon:
        assert request(daemon, "GET", f"/api/jobs/{done}").json() == before
        result = request(daemon, "GET", f"/api/jobs/{done}/download")
        assert (result.status_code, result.content) == (200, PDF)
        assert child_of(tmp_path, running) != orphan
        assert not alive(orphan)
        again = request(daemon, "GET", f"/api/jobs/{running}").json()
        assert (again["status"], again["attempt"]) == ("processing", 2)
        assert status(daemon, ID) == "processing"
        (tmp_path / "go").touch()
        ended = finished(daemon, running)
        assert ended["attempt"] == 2
        assert request(daemon, "GET", ended["output_path"]).content == PDF


def test_children_of_a_killed_daemon_end_before_a_retry(tmp_path: Path, config: str) -> None:
    state_dir = tmp_path / "state"
    before: set[int] = set()
    job_id = ""
    for attempt in (1, 2, 3):
        with served_daemon(state_dir, config=config) as daemon:
            job_id = job_id or submit(daemon, "alone")
            child = child_of(tmp_path, job_id)
            helper = tmp_path / f"helper-{job_id}"
            until(lambda path=helper: path.exists() and path.read_text().endswith("\n"))  # type: ignore[misc]
            assert not any(map(alive, before))
            before |= {child, int(helper.read_text())}
            job = request(daemon, "GET", f"/api/jobs/{job_id}").json()
            assert (job["status"], job["attempt"]) == ("processing", attempt)
            assert request(daemon, "GET", f"/api/jobs/{job_id}/download").status_code == 409
            daemon.process.kill()
            daemon.process.wait(PATIENCE)
        (tmp_path / f"pid-{job_id}").unlink()
        helper.unlink()
    with served_daemon(state_dir, config=config) as daemon:
        until(lambda: status(daemon, job_id) == "failed")
        assert request(daemon, "GET", f"/api/jobs/{job_id}").json()["error"] == "interrupted"
        assert request(daemon, "GET", f"/api/jobs/{job_id}/download").status_code == 409
        assert not any(map(alive, before))
        assert {path.name for path in (state_dir / "jobs" / job_id).iterdir()} == {"input"}
        assert list((state_dir / "children").iterdir()) == []


def test_children_of_a_cancelled_job_end_after_a_kill(tmp_path: Path, config: str) -> None:
    slow = config.replace("kill_grace = 0.3", "kill_grace = 1000")
    with served_daemon(tmp_path / "state", config=slow) as daemon:
        job_id = submit(daemon, "alone")
        child = child_of(tmp_path, job_id)
        assert request(daemon, "DELETE", f"/api/jobs/{job_id}").status_code == 200
        daemon.process.kill()
        daemon.process.wait(PATIENCE)
    assert alive(child)
    with served_daemon(tmp_path / "state", config=config) as daemon:
        until(lambda: not alive(child))
        assert status(daemon, job_id) == "cancelled"


def test_a_conversion_restarts_after_a_kill(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with served_daemon(state_dir) as daemon:
        with SCAN.open("rb") as scan:
            given = {"file": ("scan.pdf", scan)}
            job_id = str(request(daemon, "POST", "/api/convert", files=given).json()["job_id"])
        until(lambda: request(daemon, "GET", f"/api/jobs/{job_id}").json()["progress"]["percent"] > 10)
        child = json.loads((state_dir / "children" / job_id).read_bytes())["pid"]
        daemon.process.kill()
        daemon.process.wait(PATIENCE)
        assert alive(child)
    with served_daemon(state_dir) as daemon:
        until(lambda: request(daemon, "GET", f"/api/jobs/{job_id}").json()["attempt"] == 2)
        assert not alive(child)
        done = finished(daemon, job_id)
        assert (done["attempt"], done["page_count"], done["progress"]["percent"]) == (2, 4, 100)
        assert request(daemon, "GET", done["output_path"]).content.startswith(b"%PDF-")
        assert {path.name for path in (state_dir / "jobs" / job_id).iterdir()} == {"input", "output"}


async def messages(daemon: ServedDaemon, path: str) -> list[dict[str, Any]]:
    """Return the messages of a watcher of one job up to its end."""
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


async def test_a_cursor_survives_a_kill(tmp_path: Path, config: str) -> None:
    state_dir = tmp_path / "state"
    with served_daemon(state_dir, config=config) as daemon:
        job_id = submit(daemon, "gated")
        until(lambda: request(daemon, "GET", f"/api/jobs/{job_id}").json()["progress"]["percent"] == 50)
        cursor = request(daemon, "GET", f"/api/jobs/{job_id}").json()["cursor"]
        daemon.process.kill()
        daemon.process.wait(PATIENCE)
    (tmp_path / "go").touch()
    with served_daemon(state_dir, config=config) as daemon:
        finished(daemon, job_id)
        resumed = await messages(daemon, f"/ws/jobs/{job_id}?since={cursor}")
    changes = [one["data"]["new_status"] for one in resumed if one["type"] == "status_change"]
    assert changes == ["queued", "processing", "completed"]
    assert resumed[-1]["type"] == "completed"
    assert not any(one["type"] == "resync" for one in resumed)


# systemd


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """Return the socket on which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(PATIENCE)
        yield receiver


def test_systemd_is_notified_of_start_and_stop(tmp_path: Path, config: str, notified: socket.socket) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with served_daemon(tmp_path / "state", environment, config) as daemon:
        assert notified.recv(1000) == b"READY=1"
        assert notified.recv(1000) == b"STATUS=jobs: 0 running, 0 queued; watchers: 0"
        inside = request(daemon, "GET", finished(daemon, submit(daemon, "inside"))["output_path"]).text
        daemon.process.send_signal(signal.SIGTERM)
        until(lambda: notified.recv(1000).startswith(b"STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000"))
        assert daemon.process.wait(PATIENCE) == 0
    assert "NOTIFY_SOCKET" not in inside
    assert "PROGRESSD_JOB_ID=" in inside


GIVEN = ("given.sock", "another.sock")


def by_a_shell(command: Sequence[str], directory: Path, port: int) -> subprocess.Popen[str]:
    """Pass listening sockets as systemd does: from descriptor 3 on, with the process id."""
    with socket.create_server(("127.0.0.1", port)) as tcp, ExitStack() as opened:
        given = [tcp.fileno()]
        for name in GIVEN:
            unix = opened.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(str(directory / name))
            unix.listen()
            given.append(unix.fileno())
        passed = " ".join(f"{3 + number}<&{descriptor}" for number, descriptor in enumerate(given))
        script = f'exec {passed}; LISTEN_PID=$$ exec env "$@"'
        variables = ["LISTEN_FDS=3", "LISTEN_FDNAMES=http:ingest:ingest"]
        return subprocess.Popen(["bash", "-c", script, "bash", *variables, *command], pass_fds=given)


def by_systemd(command: Sequence[str], directory: Path, port: int) -> subprocess.Popen[str]:
    """Use systemd's own tool, which starts the daemon at the first connection."""
    listen = [f"--listen=127.0.0.1:{port}", *(f"--listen={directory / name}" for name in GIVEN)]
    return subprocess.Popen(["systemd-socket-activate", *listen, *command])


LAUNCHERS = [by_a_shell, *([by_systemd] if shutil.which("systemd-socket-activate") else [])]


@pytest.mark.parametrize("launch", LAUNCHERS)
def test_sockets_of_systemd_are_used(
    tmp_path: Path, config: str, free_port: int, launch: Callable[[Sequence[str], Path, int], subprocess.Popen[str]]
) -> None:
    (tmp_path / "config.toml").write_text(config)
    arguments = ["--config", str(tmp_path / "config.toml"), "--state-dir", str(tmp_path / "state")]
    process = launch([sys.executable, "-m", "progressd", "serve", *arguments], tmp_path, free_port)
    with process:
        daemon = ServedDaemon(f"http://127.0.0.1:{free_port}", process, tmp_path / "state")
        try:
            until(lambda: is_answered(daemon))
            assert [report(tmp_path / name, registered(ID))["ok"] for name in GIVEN] == [True, True]
            assert not (daemon.state_dir / "ingest.sock").exists()
            inside = request(daemon, "GET", finished(daemon, submit(daemon, "inside"))["output_path"]).text
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    assert "PROGRESSD_JOB_ID=" in inside
    assert "LISTEN_" not in inside
    assert inside.split()[-4:] == ["0", "1", "2", "3"], "a pipeline has inherited descriptors"
    assert all((tmp_path / name).exists() for name in GIVEN), "they are not ours to remove"


def is_answered(daemon: ServedDaemon) -> bool:
    try:
        return request(daemon, "GET", "/api/health/ready").status_code == 200
    except httpx.ConnectError:
        return False


def report(path: Path, event: dict[str, Any]) -> Any:
    """Report as a producer, and wait for the answer."""
    with socket.socket(socket.AF_UNIX) as producer:
        producer.settimeout(PATIENCE)
        producer.connect(str(path))
        producer.sendall(json.dumps({"ref": 1, **event}).encode() + b"\n")
        return json.loads(producer.makefile().readline())


def test_a_connection_before_the_start_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "progressd", "serve", "--state-dir", str(tmp_path / "state")]
    with ExitStack() as closing:
        listening = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        early = closing.enter_context(socket.create_connection(listening.getsockname(), PATIENCE))
        early.sendall(b"GET /api/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        script = f'exec 3<&{listening.fileno()}; LISTEN_PID=$$ exec env LISTEN_FDS=1 "$@"'
        process = closing.enter_context(
            subprocess.Popen(["bash", "-c", script, "bash", *command], pass_fds=[listening.fileno()])
        )
        assert early.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
        early.close()
        process.terminate()
        assert process.wait(PATIENCE) == 0


# A daemon that serves but cannot start another thread, as in a cgroup at its task limit. After SIGUSR1 the stack of a
# thread is larger than the address space, and idle threads end at once.
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
        assert httpx.post(f"{url}/api/jobs", trust_env=False).status_code == 201
        process.send_signal(signal.SIGUSR1)
        with suppress(httpx.TransportError):
            for _ in range(1000):
                httpx.post(f"{url}/api/jobs", trust_env=False)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "RuntimeError: can't start new thread" in said.splitlines()[-1]
