"""What a killed daemon left running is found by identity and ended; a process that only has the same id is not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from progressd.runner import orphans
from progressd.runner.orphans import ProcessRecords
from progressd.system import process_tree
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
    """A process in a session of its own, as a killed daemon leaves one behind, once it has written a line."""
    marks = {} if mark is None else {"PROGRESSD_RUNNER": mark, "PROGRESSD_JOB_ID": job}
    environment = {"PATH": os.environ["PATH"], **marks}
    command = [sys.executable, "-uc", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


SLEEPS = "import time; print(); time.sleep(1000)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(1000)"


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def record(children: ProcessRecords, pid: int, job: str = job_id(1)) -> Path:
    """The record of a child under which the daemon is killed."""
    with children.recorded(job, pid):
        path = children._records / job
        content = path.read_bytes()
    path.write_bytes(content)
    return path


async def end(children: ProcessRecords, grace: float = GRACE) -> set[str]:
    with trio.fail_after(PATIENCE):
        return await children.end_left_over(grace)


async def test_what_has_the_mark_is_asked_to_end(children: ProcessRecords) -> None:
    with started(SLEEPS, children.mark) as process:
        line_of(process)
        assert await end(children) == set()
        assert process.wait(PATIENCE) == -signal.SIGTERM


async def test_what_does_not_end_when_asked_is_killed(children: ProcessRecords) -> None:
    with started(STUBBORN, children.mark) as process:
        line_of(process)
        assert await end(children) == set()
        assert process.wait(PATIENCE) == -signal.SIGKILL


async def test_what_left_the_session_is_ended_all_the_same(children: ProcessRecords) -> None:
    program = f"import subprocess; subprocess.Popen(['setsid', 'sh', '-c', 'echo $$; sleep 1000'])\n{SLEEPS}"
    with started(program, children.mark) as process:
        grandchild = max(int(line_of(process).strip() or 0) for _ in range(2))
        await end(children)
        await eventually(lambda: not alive(grandchild))


async def test_what_has_neither_the_mark_nor_the_session_is_ended_with_its_parent(children: ProcessRecords) -> None:
    program = (
        f"import subprocess; subprocess.Popen('env -i setsid sh -c \"echo $$; sleep 1000\"', shell=True)\n{SLEEPS}"
    )
    with started(program, children.mark) as process:
        grandchild = max(int(line_of(process).strip() or 0) for _ in range(2))
        assert await end(children) == set()
        await eventually(lambda: not alive(grandchild))


async def test_nobody_is_overlooked_where_descriptors_run_out_in_the_middle_of_the_look(
    children: ProcessRecords,
) -> None:
    with started(SLEEPS, children.mark) as process:
        line_of(process)
        spare = os.open("/dev/null", os.O_RDONLY)
        with no_descriptors_left():
            os.close(spare)  # one is left, and to look at a process takes two
            with pytest.raises(OSError, match="Too many open files"):
                await end(children)
        assert await end(children) == set()
        assert process.wait(PATIENCE) == -signal.SIGTERM


async def test_what_starts_others_while_it_is_ended_is_ended_with_them(
    children: ProcessRecords, tmp_path: Path
) -> None:
    program = (
        "import os, signal, time\n"
        f"def again(*_):\n    if pid := os.fork():\n        open('{tmp_path}/pid', 'a').write(f'{{pid}}\\n')\n"
        "        os._exit(0)\n"
        "signal.signal(signal.SIGTERM, again)\nprint()\nwhile True: time.sleep(60)\n"
    )
    with started(program, children.mark) as process:
        line_of(process)
        await end(children, 0.2)
        assert not alive(int((tmp_path / "pid").read_text().split()[-1]))


async def test_a_program_that_overwrote_its_environment_is_known_by_its_record(children: ProcessRecords) -> None:
    with started(SLEEPS) as process:
        line_of(process)
        path = record(children, process.pid)
        assert await end(children) == set()
        assert process.wait(PATIENCE) == -signal.SIGTERM
    assert not path.exists()


async def test_the_session_of_a_recorded_child_is_ended_with_it(children: ProcessRecords) -> None:
    program = f"import subprocess; print(subprocess.Popen(['sleep', '1000'], process_group=0).pid)\n{SLEEPS}"
    with started(program) as process:
        grandchild = int(line_of(process))
        record(children, process.pid)
        await end(children)
        await eventually(lambda: not alive(grandchild))


@pytest.mark.parametrize("other", [{"started": 1}, {"boot": "another"}])
async def test_a_process_that_has_the_id_of_an_earlier_child_is_left_alone(
    children: ProcessRecords, other: dict[str, object]
) -> None:
    with started(SLEEPS) as process:
        line_of(process)
        path = record(children, process.pid)
        path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **other}))
        assert await end(children) == set()
        assert process.poll() is None
    assert not path.exists()


async def test_the_session_of_a_process_that_has_the_id_of_an_earlier_child_is_left_alone(
    children: ProcessRecords,
) -> None:
    """The leader has ended, so that nothing tells any more whose session it was."""
    program = "import os, time\nif os.fork(): os._exit(0)\nprint(os.getpid()); time.sleep(1000)"
    with started(program) as process:
        left = int(line_of(process))
        await eventually(lambda: not alive(process.pid))
        leader = msgspec.json.encode({"boot": orphans._boot(), "pid": process.pid, "started": 1})
        (children._records).mkdir()
        (children._records / job_id(1)).write_bytes(leader)
        await end(children)
        assert alive(left)
        os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("mark", ["", "PREFIX", "another", None])
async def test_what_has_another_mark_is_left_alone(children: ProcessRecords, mark: str | None) -> None:
    with started(SLEEPS, f"x{children.mark}" if mark == "PREFIX" else mark) as process:
        line_of(process)
        assert await end(children) == set()
        assert process.poll() is None


def test_a_copy_of_the_state_directory_has_another_mark(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    assert ProcessRecords(tmp_path, STORE).mark != ProcessRecords(tmp_path / "copy", STORE).mark
    assert ProcessRecords(tmp_path, STORE).mark != ProcessRecords(tmp_path, "00000000").mark
    assert ProcessRecords(tmp_path, STORE).mark == ProcessRecords(tmp_path, STORE).mark


async def test_the_daemon_itself_is_no_orphan_though_it_runs_in_a_job(
    children: ProcessRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(children, os.getpid())
    assert await end(children) == set()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"boot":"x","pid":1', b"[]", b"\xff", b'{"boot":"\xff","pid":1,"started":1}']
)
async def test_a_record_that_was_not_written_to_its_end_is_passed_over(
    children: ProcessRecords, content: bytes
) -> None:
    children._records.mkdir()
    (children._records / job_id(1)).write_bytes(content)
    assert await end(children) == set()
    assert children.recorded_jobs() == []


async def test_what_cannot_be_ended_is_told_by_its_job_and_stays_on_record(
    children: ProcessRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_tree, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(process_tree, "KILL_SEARCHES", 2)
    with started(STUBBORN, children.mark) as process, started(SLEEPS, children.mark, job_id(2)) as other:
        line_of(process), line_of(other)
        record(children, process.pid)
        # As for a process that waits in the kernel for a disk that is gone.
        monkeypatch.setattr(process_tree, "SIGKILL", signal.SIGTERM)
        assert await end(children, 2.0) == {job_id(1)}
        monkeypatch.undo()
        assert children.recorded_jobs() == [job_id(1)]


def test_a_child_is_on_record_while_it_runs(children: ProcessRecords) -> None:
    assert children.recorded_jobs() == []
    with children.recorded(job_id(1), os.getpid()):
        assert children.recorded_jobs() == [job_id(1)]
    assert children.recorded_jobs() == []


def test_a_child_runs_though_it_cannot_be_recorded(tmp_path: Path, children: ProcessRecords) -> None:
    (tmp_path / "children").write_text("in the way")
    with pytest.raises(RuntimeError, match="done"), children.recorded(job_id(1), os.getpid()):
        raise RuntimeError("done")


async def test_looking_leaves_nothing_open(children: ProcessRecords) -> None:
    before = open_files()
    with started(SLEEPS, children.mark) as process:
        line_of(process)
        await end(children)
        process.wait(PATIENCE)
    assert open_files() <= before
