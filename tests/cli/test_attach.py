"""`progressd attach`: running processes become jobs."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from progressd.client.attach import exit_status, find, opened, unit_of
from progressd.client.errors import ClientError
from progressd.system.file_offsets import FileOffsets
from progressd.system.process_tree import look
from support.serving import PATIENCE, ServedDaemon, served_daemon
from support.terminal import in_terminal
from support.waiting import until

SIZE = 64 << 20
RESTRICTED = ["setpriv", "--bounding-set=-kill,-sys_ptrace", "--inh-caps=-kill,-sys_ptrace"]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large file, which nothing compresses."""
    path = tmp_path_factory.mktemp("files") / "big"
    path.write_bytes(os.urandom(SIZE))
    return path


@contextlib.contextmanager
def stuck(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command whose output is read only by the test."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def read_some(process: subprocess.Popen[bytes]) -> bool:
    """Let a stuck command continue a little."""
    assert process.stdout is not None
    return bool(os.read(process.stdout.fileno(), 65536))


@contextlib.contextmanager
def attached(daemon: ServedDaemon, *arguments: object, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    words = [*before, sys.executable, "-m", "progressd", "attach", "--url", daemon.url, *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ids(process: subprocess.Popen[str], number: int) -> list[str]:
    """Return the ids of the jobs, as they are printed."""
    assert process.stdout is not None
    return [process.stdout.readline().split()[0] for _ in range(number)]


def position(process: subprocess.Popen[bytes], file: Path) -> int:
    """Return the position of a process in a file."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        if descriptor.readlink() == file:
            return int(Path(f"/proc/{process.pid}/fdinfo/{descriptor.name}").read_text().split()[1])
    raise AssertionError(f"{file} is not open")


def test_the_progress_is_the_position_in_the_file(daemon: ServedDaemon, big: Path, tmp_path: Path) -> None:
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.truncate(1 << 36)
    commands = [
        ["dd", f"if={big}", "bs=64k", "status=none"],
        ["cp", str(big), "/dev/stdout"],
        ["gzip", "-1", "-c", str(big)],
        ["cat", str(big), str(tmp_path / "none"), "--", str(big)],
        ["sha256sum", str(hole)],
    ]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(stuck(words, stderr=subprocess.DEVNULL)) for words in commands]
        attach = stack.enter_context(attached(daemon, *(process.pid for process in processes)))
        jobs = ids(attach, len(processes))

        def all_move() -> bool:
            for process in processes[:-1]:
                read_some(process)
            return all(daemon.job(job)["progress"]["current_step"] > 0 for job in jobs)

        until(all_move)
        processes[-1].send_signal(signal.SIGSTOP)  # the others wait for a reader
        for process, job, words in zip(processes, jobs, commands, strict=True):
            file = hole if words[0] == "sha256sum" else big
            until(
                lambda job=job, process=process, file=file: (
                    daemon.job(job)["progress"]["current_step"] == position(process, file)
                )
            )
            shown = daemon.job(job)
            assert (shown["kind"], shown["name"]) == (words[0], " ".join(words))
            assert shown["labels"]["pid"] == str(process.pid)
            assert shown["progress"]["step_name"] == f"Reading {file.name}"
            size = file.stat().st_size
            assert shown["progress"]["total_steps"] == (2 * size if words[0] == "cat" else size)
            if shutil.which("progress"):
                told = subprocess.run(
                    ["progress", "--pid", str(process.pid)], capture_output=True, text=True, check=True
                )
                found = re.search(r"([\d.]+)%", told.stdout)
                assert found is not None
                assert abs(float(found[1]) - shown["progress"]["current_step"] / size * 100) < 0.1


def test_the_job_ends_as_the_process_does(daemon: ServedDaemon, big: Path) -> None:
    scripts = ["exit 0", "exit 3", "kill -KILL $$", "kill -INT $$"]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(stuck(["sh", "-c", f"read x; {script}"], stdin=subprocess.PIPE)) for script in scripts
        ]
        attach = stack.enter_context(attached(daemon, "--label", "team=ops", *(process.pid for process in processes)))
        jobs = [daemon.job(job) for job in ids(attach, len(scripts))]
        assert [(job["status"], job["labels"]["team"]) for job in jobs] == [("processing", "ops")] * len(scripts)
        for process in processes:
            process.communicate(b"\n", timeout=PATIENCE)
        ends = [daemon.ended(job["id"]) for job in jobs]
        assert [(end["status"], end.get("error")) for end in ends] == [
            ("completed", None),
            ("failed", "sh failed with exit status 3"),
            ("failed", "sh was killed by SIGKILL"),
            ("cancelled", None),
        ]
        assert attach.wait(PATIENCE) == 1


def test_descendants_count_and_may_outlive_the_process(daemon: ServedDaemon, big: Path) -> None:
    script = f"exec 3>&1; (exec cat {big} >&3) & echo; read x"
    with stuck(["sh", "-c", script], stdin=subprocess.PIPE) as shell, attached(daemon, "-f", shell.pid) as attach:
        [job] = ids(attach, 1)
        until(lambda: read_some(shell) and daemon.job(job)["progress"]["step_name"] == "Reading big")
        assert shell.stdin is not None
        shell.stdin.write(b"\n")
        shell.stdin.close()
        shell.wait(PATIENCE)
        assert shell.stdout is not None
        shell.stdout.read()
        assert daemon.ended(job)["status"] == "completed"
        assert daemon.job(job)["progress"]["percent"] > 90


def test_programs_are_found_by_name_whenever_they_start(daemon: ServedDaemon, tmp_path: Path) -> None:
    program = tmp_path / "a-name-longer-than-15"
    program.symlink_to("/bin/sleep")
    assert find(program.name) == []
    with attached(daemon, "--follow", "--name", "later", program.name) as attach, stuck([str(program), "1000"]) as one:
        [job] = ids(attach, 1)
        assert daemon.job(job)["name"] == "later"
        assert [process.pid for process in find(program.name)] == [one.pid]
        with stuck([str(program), "1000"]) as other:
            [second] = ids(attach, 1)
            assert daemon.job(second)["labels"]["pid"] == str(other.pid)
            attach.send_signal(signal.SIGINT)
            assert attach.wait(PATIENCE) == 130
            assert one.poll() is other.poll() is None
    assert [daemon.job(one)["status"] for one in (job, second)] == ["cancelled"] * 2


def test_a_cancelled_job_leaves_the_process_alone(daemon: ServedDaemon) -> None:
    with stuck(["sleep", "1000"]) as process, attached(daemon, process.pid) as attach:
        [job] = ids(attach, 1)
        assert daemon.request("DELETE", f"/api/jobs/{job}").is_success
        assert attach.wait(PATIENCE) == 1
        assert attach.stderr is not None
        assert attach.stderr.read() == f"progressd: job {job} was cancelled; sleep ({process.pid}) continues\n"
        assert process.poll() is None


def test_the_wait_for_a_dead_daemon_is_announced_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with (
        stuck(["sleep", "1000"]) as process,
        served_daemon(tmp_path / "state") as daemon,
        attached(daemon, process.pid) as attach,
    ):
        ids(attach, 1)
        daemon.kill()
        process.kill()
        process.wait()
        waiting = f"sleep ({process.pid}) has ended; waiting up to 60 s for the daemon (Ctrl-C stops the wait)"
        assert attach.stderr is not None
        assert f"progressd: {waiting}\n" in iter(attach.stderr.readline, "")
        attach.send_signal(signal.SIGINT)
        assert attach.wait(PATIENCE) == 130
        assert attach.stderr.read().endswith("progressd: the daemon did not receive the end of the job\n")


def test_the_jobs_can_be_watched(daemon: ServedDaemon) -> None:
    with stuck(["sleep", "1000"]) as process, attached(daemon, "-w", process.pid) as attach:
        [job] = ids(attach, 1)
        assert attach.stdout is not None
        assert attach.stdout.readline() == f"{job} status_change queued -> processing\n"
        process.kill()
        assert attach.stdout.read().endswith(f"{job} error sleep was killed by SIGKILL\n")


def test_ids_have_their_own_lines_on_a_terminal(daemon: ServedDaemon) -> None:
    words = ["env", "TERM=xterm", sys.executable, "-m", "progressd", "attach", "--url", daemon.url, "-w"]
    with stuck(["sleep", "1000"]) as process, in_terminal([*words, str(process.pid)]) as (_, terminal):
        shown = terminal.read(rb"sleep \(\d+\)\s*\r\n")
    assert re.search(rb"(\x1b\[2K|\n)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12} sleep \(\d+\)\r\n", shown), shown


@pytest.mark.parametrize("given", ["999999999", "no-such-program", "no-such.service"])
def test_what_does_not_run_cannot_be_attached(given: str, daemon: ServedDaemon) -> None:
    with attached(daemon, given) as attach:
        _, told = attach.communicate(timeout=PATIENCE)
    assert attach.returncode == 1
    assert told == (
        f"Error: there is no process {given}\n" if given.isdecimal() else f"Error: no process is called {given}\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_files_are_out_of_reach(daemon: ServedDaemon) -> None:
    with stuck(["sleep", "1000"], user=65534) as process, attached(daemon, process.pid, before=RESTRICTED) as attach:
        _, told = attach.communicate(timeout=PATIENCE)
    assert attach.returncode == 1
    named = f"process {process.pid} (sleep, user nobody)"
    assert told == f"Error: cannot see the open files of {named}: permission denied (use sudo)\n"


@pytest.mark.parametrize("script", ["exit 0", "exit 7", "kill -KILL $$"])
def test_an_exit_status_is_known_after_collection(script: str) -> None:
    with stuck(["sh", "-c", f"read x; {script}"], stdin=subprocess.PIPE) as process:
        found = look(process.pid)
        assert found is not None
        target = opened(found)
        assert exit_status(target) is None
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert (exit_status(target), process.wait()) == (process.returncode,) * 2
        if (known := exit_status(target)) is not None:  # since Linux 6.15
            assert known == process.returncode
        with pytest.raises(ClientError, match="has ended"):
            opened(found)
        os.close(target.descriptor)


def test_a_written_file_of_known_size_counts(tmp_path: Path) -> None:
    with open(tmp_path / "allocated", "wb") as allocated, open(tmp_path / "growing", "wb") as growing:
        allocated.truncate(1 << 20)
        own = look(os.getpid())
        assert own is not None
        offsets = FileOffsets([own], 1)
        offsets.look()
        for file in (allocated, growing):
            file.write(b"x" * 4096)
            file.flush()
        found = offsets.look()
        assert found is not None
        assert (found.path, found.offset, found.size) == (str(tmp_path / "allocated"), 4096, 1 << 20)
        assert found.progress().step_name == "Writing allocated"
        assert offsets.look() is None


def test_ended_processes_are_forgotten() -> None:
    with stuck(["sh", "-c", "cat; :"], stdin=subprocess.PIPE) as shell:
        found = look(shell.pid)
        assert found is not None
        offsets = FileOffsets([found], 1, follow=True)
        until(lambda: offsets.look() is None and [one.name for one in offsets.processes] == ["sh", "cat"])
        cat = offsets.processes[1]
        shell.kill()
        until(lambda: offsets.look() is None and [one.identity for one in offsets.processes] == [cat.identity])
        os.kill(cat.pid, signal.SIGKILL)
        until(lambda: offsets.look() is None and not offsets.processes)


def test_a_later_process_with_the_same_id_is_not_followed(big: Path) -> None:
    with stuck(["cat", str(big)]) as process:
        until(lambda: read_some(process))
        found = look(process.pid)
        assert found is not None
        offsets = FileOffsets([found._replace(started=found.started - 1)], 1, follow=True)
        assert offsets.look() is None
        assert list(offsets.processes) == []


def test_secrets_are_masked_in_the_name() -> None:
    with stuck(["sh", "-c", "echo; read x", "sh", "--password=hunter2"], stdin=subprocess.PIPE) as process:
        assert read_some(process)
        target = opened(found := find(str(process.pid))[0])
        assert target.name == "sh -c 'echo; read x' sh --password=***"
        assert target.registration(None, {}, 60)["labels"]["user"] == found.user
        os.close(target.descriptor)


@pytest.fixture
def unit() -> Iterator[Path]:
    """A cgroup with the name of a systemd unit."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    path = next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), Path("/none")) / "progressd-test.service"
    try:
        path.mkdir()
    except OSError:
        pytest.skip("needs the right to make a cgroup")
    yield path
    until(lambda: path.joinpath("cgroup.procs").read_text() == "")
    path.rmdir()


def test_a_units_processes_are_found_without_children(unit: Path) -> None:
    with stuck(["sh", "-c", f"echo $$ > {unit}/cgroup.procs; echo; read x | read x"], stdin=subprocess.PIPE) as shell:
        assert read_some(shell)
        until(lambda: len(unit.joinpath("cgroup.procs").read_text().split()) > 1)
        [found] = find(unit.name)
        assert found.pid == shell.pid
        target = opened(found)
        assert target.registration(None, {}, 60)["labels"]["unit"] == unit.name
        os.close(target.descriptor)
    assert unit_of(2**30) == ""
