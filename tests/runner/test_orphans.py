"""Processes that a killed daemon left running: found by mark or record, never by process id alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
from progressd.runner import orphans
from progressd.runner.orphans import ProcessRecords
from support.samples import job_id
from support.scarcity import no_descriptors_left
from support.waiting import PATIENCE, alive, eventually, open_files

STORE = "cd06f405"
GRACE = 0.2


@pytest.fixture
def children(tmp_path: Path) -> ProcessRecords:
    return ProcessRecords(tmp_path, STORE)


@contextmanager
def started(program: str, mark: str | None = None, job: str = job_id(1)) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in its own session, as a killed daemon leaves one."""
    marks = {} if mark is None else {"PROGRESSD_RUNNER": mark, "PROGRESSD_JOB_ID": job}
    environment = {"PATH": os.environ["PATH"], **marks}
    command = [sys.executable, "-uc", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # a program that forks must not outlive its test
                os.killpg(process.pid, signal.SIGKILL)


SLEEPS = "import time; print(); time.sleep(1000)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(1000)"


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def record(children: ProcessRecords, pid: int, job: str = job_id(1)) -> Path:
    """Return the record that a killed daemon leaves of a child."""
    with children.recorded(job, pid):
        path = children._records / job
        content = path.read_bytes()
    path.write_bytes(content)
    return path


async def end(children: ProcessRecords, grace: float = GRACE) -> set[str]:
    with trio.fail_after(PATIENCE):
        return await children.end_orphans(grace)


@pytest.mark.parametrize(("program", "number"), [(SLEEPS, signal.SIGTERM), (STUBBORN, signal.SIGKILL)])
async def test_a_marked_process_is_ended(children: ProcessRecords, program: str, number: signal.Signals) -> None:
    with started(program, children.mark) as process:
        line_of(process)
        assert await end(children) == set()
        assert process.wait(PATIENCE) == -number


@pytest.mark.parametrize("clean", ["", "env -i "], ids=["with the mark", "without the mark"])
async def test_a_descendant_outside_the_session_is_ended(children: ProcessRecords, clean: str) -> None:
    descendant = f"{clean}setsid sh -c 'echo $$; exec sleep 1000'"
    with started(
        f"import subprocess; subprocess.Popen({descendant!r}, shell=True)\n{SLEEPS}", children.mark
    ) as process:
        grandchild = max(int(line_of(process).strip() or 0) for _ in range(2))
        assert await end(children) == set()
        await eventually(lambda: not alive(grandchild))


async def test_descriptors_that_run_out_hide_no_process(children: ProcessRecords) -> None:
    with started(SLEEPS, children.mark) as process:
        line_of(process)
        spare = os.open("/dev/null", os.O_RDONLY)
        with no_descriptors_left():
            os.close(spare)  # one is free, and a search needs two
            with pytest.raises(OSError, match="Too many open files"):
                await end(children)
        assert await end(children) == set()
        assert process.wait(PATIENCE) == -signal.SIGTERM


async def test_processes_that_fork_on_sigterm_are_ended(children: ProcessRecords, tmp_path: Path) -> None:
    program = (
        "import os, signal, time\n"
        f"def again(*_):\n    if pid := os.fork():\n        open('{tmp_path}/pid', 'a').write(f'{{pid}}\\n')\n"
        "        os._exit(0)\n"
        "signal.signal(signal.SIGTERM, again)\nprint()\nwhile True: time.sleep(60)\n"
    )
    with started(program, children.mark) as process:
        line_of(process)
        await end(children, 0.2)
        pids = tmp_path / "pid"

        def all_of() -> list[int]:  # only one if the first process was killed before it could handle SIGTERM
            return [process.pid, *map(int, pids.read_text().split() if pids.exists() else ())]

        await eventually(lambda: not any(map(alive, all_of())))


async def test_a_record_identifies_a_process_without_the_mark(children: ProcessRecords) -> None:
    with started(SLEEPS) as process:
        line_of(process)
        path = record(children, process.pid)
        assert await end(children) == set()
        assert process.wait(PATIENCE) == -signal.SIGTERM
    assert not path.exists()


async def test_the_session_of_a_recorded_child_is_ended(children: ProcessRecords) -> None:
    program = f"import subprocess; print(subprocess.Popen(['sleep', '1000'], process_group=0).pid)\n{SLEEPS}"
    with started(program) as process:
        grandchild = int(line_of(process))
        record(children, process.pid)
        await end(children)
        await eventually(lambda: not alive(grandchild))


@pytest.mark.parametrize("other", [{"started": 1}, {"boot": "another"}])
async def test_a_reused_process_id_is_left_alone(children: ProcessRecords, other: dict[str, object]) -> None:
    with started(SLEEPS) as process:
        line_of(process)
        path = record(children, process.pid)
        path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **other}))
        assert await end(children) == set()
        assert process.poll() is None
    assert not path.exists()


async def test_a_reused_session_id_is_left_alone(children: ProcessRecords) -> None:
    """The leader has ended, so the owner of the session is unknown."""
    program = "import os, time\nif os.fork(): os._exit(0)\nprint(os.getpid()); time.sleep(1000)"
    with started(program) as process:
        left = int(line_of(process))
        await eventually(lambda: not alive(process.pid))
        leader = msgspec.json.encode({"boot": orphans._boot_id(), "pid": process.pid, "started": 1})
        (children._records).mkdir()
        (children._records / job_id(1)).write_bytes(leader)
        await end(children)
        assert alive(left)
        os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("mark", ["", "PREFIX", "another", None])
async def test_another_mark_is_left_alone(children: ProcessRecords, mark: str | None) -> None:
    with started(SLEEPS, f"x{children.mark}" if mark == "PREFIX" else mark) as process:
        line_of(process)
        assert await end(children) == set()
        assert process.poll() is None


def test_each_state_directory_has_its_own_mark(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    assert ProcessRecords(tmp_path, STORE).mark != ProcessRecords(tmp_path / "copy", STORE).mark
    assert ProcessRecords(tmp_path, STORE).mark != ProcessRecords(tmp_path, "00000000").mark
    assert ProcessRecords(tmp_path, STORE).mark == ProcessRecords(tmp_path, STORE).mark


async def test_the_daemon_itself_is_never_ended(children: ProcessRecords) -> None:
    record(children, os.getpid())
    assert await end(children) == set()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"boot":"x","pid":1', b"[]", b"\xff", b'{"boot":"\xff","pid":1,"started":1}']
)
async def test_an_incomplete_record_is_deleted(children: ProcessRecords, content: bytes) -> None:
    children._records.mkdir()
    (children._records / job_id(1)).write_bytes(content)
    assert await end(children) == set()
    assert children.recorded_jobs() == []


def test_a_child_is_recorded_while_it_runs(children: ProcessRecords) -> None:
    assert children.recorded_jobs() == []
    with children.recorded(job_id(1), os.getpid()):
        assert children.recorded_jobs() == [job_id(1)]
    assert children.recorded_jobs() == []


def test_a_child_runs_without_a_record(tmp_path: Path, children: ProcessRecords) -> None:
    (tmp_path / "children").write_text("in the way")
    with pytest.raises(RuntimeError, match="done"), children.recorded(job_id(1), os.getpid()):
        raise RuntimeError("done")


async def test_a_search_leaves_no_file_open(children: ProcessRecords) -> None:
    before = open_files()
    with started(SLEEPS, children.mark) as process:
        line_of(process)
        await end(children)
        process.wait(PATIENCE)
    assert open_files() <= before
