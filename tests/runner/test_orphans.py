"""Processes that a killed daemon left running: found by their mark."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
from progressd.runner.orphans import end_orphans, mark_of
from support.samples import job_id
from support.scarcity import no_descriptors_left
from support.waiting import PATIENCE, alive, eventually, open_files

STORE = "cd06f405"
GRACE = 0.2


@pytest.fixture
def mark(tmp_path: Path) -> str:
    return mark_of(tmp_path, STORE)


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


async def end(mark: str) -> set[str]:
    with trio.fail_after(PATIENCE):
        return await end_orphans(mark, GRACE)


@pytest.mark.parametrize(("program", "number"), [(SLEEPS, signal.SIGTERM), (STUBBORN, signal.SIGKILL)])
async def test_a_marked_process_is_ended(mark: str, program: str, number: signal.Signals) -> None:
    with started(program, mark) as process:
        line_of(process)
        assert await end(mark) == set()
        assert process.wait(PATIENCE) == -number


@pytest.mark.parametrize("clean", ["", "env -i "], ids=["with the mark", "without the mark"])
async def test_a_descendant_outside_the_session_is_ended(mark: str, clean: str) -> None:
    descendant = f"{clean}setsid sh -c 'echo $$; sleep 1000'"
    with started(f"import subprocess; subprocess.Popen({descendant!r}, shell=True)\n{SLEEPS}", mark) as process:
        grandchild = max(int(line_of(process).strip() or 0) for _ in range(2))
        assert await end(mark) == set()
        await eventually(lambda: not alive(grandchild))


async def test_descriptors_that_run_out_hide_no_process(mark: str) -> None:
    with started(SLEEPS, mark) as process:
        line_of(process)
        spare = os.open("/dev/null", os.O_RDONLY)
        with no_descriptors_left():
            os.close(spare)  # one is free, and a search needs two
            with pytest.raises(OSError, match="Too many open files"):
                await end(mark)
        assert await end(mark) == set()
        assert process.wait(PATIENCE) == -signal.SIGTERM


async def test_processes_that_fork_on_sigterm_are_ended(mark: str, tmp_path: Path) -> None:
    program = (
        "import os, signal, time\n"
        f"def again(*_):\n    if pid := os.fork():\n        open('{tmp_path}/pid', 'a').write(f'{{pid}}\\n')\n"
        "        os._exit(0)\n"
        "signal.signal(signal.SIGTERM, again)\nprint()\nwhile True: time.sleep(60)\n"
    )
    with started(program, mark) as process:
        line_of(process)
        await end(mark)
        pids = tmp_path / "pid"

        def all_of() -> list[int]:  # only one if the first process was killed before it could handle SIGTERM
            return [process.pid, *map(int, pids.read_text().split() if pids.exists() else ())]

        await eventually(lambda: not any(map(alive, all_of())))


@pytest.mark.parametrize("other", ["", "PREFIX", "another", None])
async def test_another_mark_is_left_alone(mark: str, other: str | None) -> None:
    with started(SLEEPS, f"x{mark}" if other == "PREFIX" else other) as process:
        line_of(process)
        assert await end(mark) == set()
        assert process.poll() is None


def test_each_state_directory_has_its_own_mark(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    assert mark_of(tmp_path, STORE) != mark_of(tmp_path / "copy", STORE)
    assert mark_of(tmp_path, STORE) != mark_of(tmp_path, "00000000")
    assert mark_of(tmp_path, STORE) == mark_of(tmp_path, STORE)


async def test_a_search_leaves_no_file_open(mark: str) -> None:
    before = open_files()
    with started(SLEEPS, mark) as process:
        line_of(process)
        await end(mark)
        process.wait(PATIENCE)
    assert open_files() <= before
