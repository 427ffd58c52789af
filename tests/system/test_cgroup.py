"""A cgroup for a command, where systemd has delegated one: no process escapes its end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from progressd.system.cgroup import Cgroup
from progressd.system.process_tree import Tree
from support.cgroups import FORKING, delegated, entering
from support.pid_namespace import as_init
from support.waiting import PATIENCE


@contextmanager
def forking(cgroup: Cgroup, *before: str, first: str = "") -> Iterator[None]:
    """Run a program in a cgroup that forks and exits all the time."""
    command = [*entering(cgroup), *before, sys.executable, "-c", f"{first}\n{FORKING}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cgroup.is_populated()
        yield


async def test_a_forking_program_is_ended_at_once() -> None:
    with delegated() as cgroup, forking(cgroup, "setsid"), trio.fail_after(PATIENCE):
        assert await Tree(lambda _: {}, cgroup).end(2 * PATIENCE) == []  # SIGTERM suffices
        assert not cgroup.is_populated()


async def test_a_program_that_ignores_sigterm_is_killed() -> None:
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with delegated() as cgroup, forking(cgroup, first=ignores), trio.fail_after(PATIENCE):
        assert await Tree(lambda _: {}, cgroup).end(0.1) == []
        assert not cgroup.is_populated()


def test_only_a_delegated_cgroup_is_used() -> None:
    program = "from progressd.system.cgroup import Cgroup, own_cgroup; print(own_cgroup(), Cgroup.new('progressd-new'))"
    with delegated() as cgroup:
        below = Cgroup(os.path.join(os.path.dirname(cgroup.entrance), "not-delegated"))
        os.mkdir(os.path.dirname(below.entrance))
        command = [*entering(below), sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        assert done.stdout == "None None\n"


RUNNER = """
import os, sys, trio
from pathlib import Path
from progressd.detect.plan import Plan
from progressd.runner.orphans import JOB, MARK
from progressd.runner.process import ChildProcess, ResourceLimits
from progressd.system.process_tree import running

LIMITS = ResourceLimits(memory=1 << 30, cpu=60, file=1 << 30, open_files=1024)

async def nothing(*given): pass

async def main():
    environment = {"PATH": os.environ["PATH"], MARK: "mark", JOB: "job"}
    plan = Plan((sys.executable, "-c", sys.argv[1]))
    child = await ChildProcess.start(plan, Path("/"), environment, 60, LIMITS)
    assert await child.run(nothing, nothing) == 0  # the first process exits at once
    with trio.move_on_after(10):  # a killed process may still have to run once to end
        while any(one.session == child.pid for one in running()):
            await trio.sleep(0.01)
    print([str(one) for one in running() if one.session == child.pid])

trio.run(main)
"""


def test_a_job_of_a_daemon_has_a_cgroup() -> None:
    with delegated() as cgroup:
        done = subprocess.run(
            [*entering(cgroup), sys.executable, "-c", RUNNER, FORKING],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("[]\n", "")
        assert not cgroup.is_populated()


RESTARTED = """
import subprocess, sys, trio
from pathlib import Path
from progressd.runner.orphans import ProcessRecords, cgroup_prefix
from progressd.runner.process import ENTER
from progressd.system.cgroup import Cgroup

records = ProcessRecords(Path(sys.argv[1]), "store")
cgroup = Cgroup.new(cgroup_prefix(records.mark) + "job")
command = [*ENTER, cgroup.entrance, "setsid", sys.executable, "-c", sys.argv[2]]
subprocess.Popen(command, env={}, stdout=subprocess.PIPE).stdout.readline()
print(cgroup.is_populated(), trio.run(records.end_orphans, 0.2), cgroup.is_populated(), Path(cgroup.entrance).exists())
"""


def test_a_restart_ends_processes_left_in_cgroups(tmp_path: Path) -> None:
    with delegated() as cgroup:
        command = [*entering(cgroup), sys.executable, "-c", RESTARTED, str(tmp_path), FORKING]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        found = done.stdout.splitlines()[-1].split(" ")  # after the log, if the processes were found in /proc
        assert (found[0], found[2:]) == ("True", ["False", "False"])
        assert not cgroup.is_populated()


def test_without_a_cgroup_the_process_group_is_killed() -> None:
    done = subprocess.run(
        as_init(sys.executable, "-c", RUNNER, FORKING), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
