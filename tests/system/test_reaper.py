"""Adopted processes do not stay zombies, and own children keep their exit status."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.pid_namespace import as_init
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE, alive, until

PIPELINES = """
[runner]
concurrency = 2
kill_grace = "0.2s"
[shutdown]
wait_for_jobs = false
[pipelines.orphans]
command = ["sh", "-c", "(true &); (setsid true &); (sleep 0.1 &); exit $(wc -c < $0)", "{input}"]
accept = ["*/*"]
[pipelines.clean]
command = ["sh", "-c", "(env -i setsid sh -c 'echo $$ > pid; mv pid '$0'.pid; exec sleep 99' &); sleep 99", "{input}"]
accept = ["*/*"]
"""


def zombies(pid: int) -> list[str]:
    """Return the zombie children of a process."""
    found = []
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [one for one in child.read_text().split() if not alive(int(one))]
    return found


@contextmanager
def daemon_as_init(tmp_path: Path) -> Iterator[tuple[ServedDaemon, int]]:
    """Run a daemon as PID 1; give it, and its process id outside."""
    (tmp_path / "config.toml").write_text(PIPELINES)
    serve = ["serve", "--port", "0", "--state-dir", str(tmp_path / "state"), "--config", str(tmp_path / "config.toml")]
    command = as_init(sys.executable, "-m", "progressd", *serve)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("listening on ").strip()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield ServedDaemon(url, process, tmp_path / "state"), int(children)
        finally:
            process.kill()


def test_a_daemon_as_pid_1_reaps_orphans(tmp_path: Path) -> None:
    with daemon_as_init(tmp_path) as (daemon, pid):
        jobs = [daemon.ended(daemon.submit("orphans", b"x" * status)) for status in (1, 2, 3, 4, 5)]
        assert [job["error"] for job in jobs] == [
            f"Pipeline error: orphans failed with exit status {status}" for status in (1, 2, 3, 4, 5)
        ]
        until(lambda: not zombies(pid))


def test_a_stop_ends_an_orphan_without_the_mark(tmp_path: Path) -> None:
    with served_daemon(tmp_path / "state", config=PIPELINES) as daemon:
        job_id = daemon.submit("clean")
        path = tmp_path / "state" / "jobs" / job_id / "input.pid"
        until(path.exists)
        left = int(path.read_text())
        assert alive(left)
    assert not alive(left)


STATUSES = """
import sys, trio
from progressd.system.reaper import adopt, reaper

async def run(status, statuses):
    process = await reaper.open_process(["sh", "-c", f"(true &); (sleep 0.0{status % 10} &); exit {status}"])
    statuses[status] = await reaper.exit_status(process)

async def main():
    adopt()
    statuses = {}
    async with trio.open_nursery() as nursery:
        for status in range(100):
            nursery.start_soon(run, status, statuses)
    assert statuses == {status: status for status in range(100)}, statuses
    print("all", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)

trio.run(main)
"""


def test_own_children_keep_their_exit_status() -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", STATUSES], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "all\n"
        until(lambda: not zombies(process.pid))
        assert process.communicate("\n", timeout=PATIENCE) == ("", "")


BEFORE = """
import os, signal, subprocess, sys, trio
from progressd.system.reaper import adopt, reaper

async def main():
    earlier = subprocess.Popen(["sleep", "1000"])
    tree = adopt()
    process = await reaper.open_process(["sleep", "1000"])
    await tree.end(60)
    print(await reaper.exit_status(process), earlier.poll())
    earlier.kill()

trio.run(main)
"""


def test_earlier_children_are_not_ended() -> None:
    done = subprocess.run([sys.executable, "-c", BEFORE], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == ("-15 None\n", "")
