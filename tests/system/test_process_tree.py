"""Finding and ending all processes of a program, and no others."""

import getpass
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from progressd.system.process_tree import Process, Tree, look
from support.scarcity import no_descriptors_left
from support.waiting import PATIENCE, alive, eventually, open_files, until


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in its own session."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_of(process: subprocess.Popen[str], count: int) -> list[int]:
    """Return the process ids that the program writes."""
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_child(pid: int) -> bool:
    """Return whether a process has a child. A parent that is killed while it starts a child leaves it alone."""
    return bool(children_of(pid))


def below(process: subprocess.Popen[str]) -> Tree:
    return Tree(lambda processes: {one.pid: "job" for one in processes if one.pid == process.pid})


async def end(tree: Tree, grace: float = 2 * PATIENCE) -> list[Process]:
    with trio.fail_after(PATIENCE):
        return await tree.end(grace)


def test_any_program_name_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "odd) 1 2").symlink_to(shutil.which("sleep") or "")
    with started("sh", "-c", 'echo $$; exec "$0" 1000', str(tmp_path / "odd) 1 2")) as process:
        [pid] = lines_of(process, 1)
        until(lambda: (seen := look(pid)) is not None and seen.name == "odd) 1 2")
        seen = look(pid)
        assert seen is not None
        assert (seen.parent, seen.group, seen.session) == (os.getpid(), pid, pid)
        assert str(seen) == f"{pid} (odd) 1 2, user {getpass.getuser()})"


def test_a_zombie_has_ended() -> None:
    with started("true") as process:
        until(lambda: not alive(process.pid))
        assert Path(f"/proc/{process.pid}").exists()
        assert look(process.pid) is None


def test_a_process_without_its_main_thread_runs() -> None:
    program = (
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=[1000]).start()\n"
        "print(flush=True)\nctypes.CDLL(None).pthread_exit(None)"
    )
    with started(sys.executable, "-c", program) as process:
        until(lambda: not alive(process.pid))  # as /proc shows it
        assert look(process.pid) is not None


async def test_descendants_in_other_sessions_are_ended() -> None:
    program = (
        "timeout 300 sleep 1000 & echo $!; env -i setsid sh -c 'echo $$; sleep 1000; :' & sleep 1000 & echo $!; wait"
    )
    with started("bash", "-c", program) as process:
        pids = lines_of(process, 3)
        await eventually(lambda: sum(map(has_child, pids)) == 2)
        assert await end(below(process)) == []
        assert not any(map(alive, pids))
        assert process.wait(PATIENCE) == -signal.SIGTERM


async def test_a_process_is_ended_after_its_parent() -> None:
    """The parent ends at SIGTERM, and the child in its own session does not."""
    program = "trap '' TERM; echo $$; exec sleep 1000"
    with started("bash", "-c", 'trap "exit 7" TERM; setsid sh -c "$0" & wait', program) as process:
        [pid] = lines_of(process, 1)
        assert await end(below(process), 0.2) == []
        assert process.wait(PATIENCE) == 7
        assert not alive(pid)


async def test_descriptors_that_run_out_raise_and_leak_nothing() -> None:
    with started("sh", "-c", "echo $$; sleep 1000; :") as process:
        [shell] = lines_of(process, 1)
        await eventually(lambda: has_child(shell))
        before = open_files()
        with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
            await end(below(process))
        assert open_files() <= before
        assert await end(below(process)) == []


async def test_a_signal_can_exclude_a_group() -> None:
    program = "setsid sh -c 'echo $$; exec sleep 1000' & trap 'echo 0' TERM; echo $$; while :; do wait; done"
    with started("bash", "-c", program) as process:
        pids = set(lines_of(process, 2))
        [other] = pids - {process.pid}
        assert await below(process).send(signal.SIGTERM, but_groups={process.pid}) == []
        await eventually(lambda: not alive(other))
        assert process.poll() is None
        assert await below(process).send(signal.SIGTERM) == []
        await trio.to_thread.run_sync(partial(lines_of, process, 1))


WITHOUT_PERMISSION = """
import signal, sys, trio
from progressd.system.process_tree import Tree

async def main():
    tree = Tree(lambda processes: {one.pid: "" for one in processes if one.session == int(sys.argv[1])})
    print(*await tree.send(signal.SIGTERM), sep="; ")
    print(*await tree.end(0.1), sep="; ")

trio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs another user")
def test_processes_without_permission_are_returned() -> None:
    program = "sleep 1000 & setpriv --reuid=65534 --clear-groups sh -c 'echo $$; sleep 1000; :' & echo $$; wait"
    with started("bash", "-c", program) as process:
        pids = lines_of(process, 2)
        [other] = set(pids) - {process.pid}
        until(lambda: has_child(other))
        [child] = children_of(other)
        restricted = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", sys.executable]
        done = subprocess.run(
            [*restricted, "-c", WITHOUT_PERMISSION, str(process.pid)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.stderr == ""
        for line in done.stdout.splitlines():
            assert set(line.split("; ")) == {f"{other} (sh, user nobody)", f"{child} (sleep, user nobody)"}
        assert len(done.stdout.splitlines()) == 2
        assert process.wait(PATIENCE) == -signal.SIGTERM
        assert alive(other)
        os.kill(other, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "program",
    [
        "sleep 1000 & trap '{}' TERM; echo $$; wait",
        "(trap '{}' TERM; echo $$; while :; do sleep 0.01; done) & wait",  # the shell ends at once
    ],
    ids=["leader", "child"],
)
async def test_every_process_may_clean_up(program: str, tmp_path: Path) -> None:
    """A shell handles SIGTERM with several commands, during many searches."""
    go, cleaned, searches = tmp_path / "go", tmp_path / "cleaned", itertools.count()
    clean_up = f"until [ -e {go} ]; do sleep 0.01 || exit 1; done; touch {cleaned}; exit"

    def descendants(processes: Iterable[Process]) -> dict[int, str]:
        if next(searches) == 10:
            go.touch()
        return {one.pid: "job" for one in processes if one.pid == process.pid}

    with started("bash", "-c", program.format(clean_up)) as process:
        lines_of(process, 1)
        assert await end(Tree(descendants)) == []
    assert cleaned.exists()
