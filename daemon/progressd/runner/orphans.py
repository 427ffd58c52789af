"""Find and stop processes that a killed daemon left running.

Every child starts with a unique mark in its environment, which its descendants inherit.

PR_SET_PDEATHSIG is simpler but wrong here: its signal is sent when the thread that started the child exits, and that is
one of Trio's worker threads.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from progressd.system.cgroup import Cgroup
from progressd.system.process_tree import Process, Tree, environment_of

MARK: Final = "PROGRESSD_RUNNER"  # the environment variable with the mark of the daemon
JOB: Final = "PROGRESSD_JOB_ID"

log = structlog.get_logger(__name__)


def mark_of(state_dir: Path, store_id: str) -> str:
    """Return the mark of the daemon with this state directory, which must exist."""
    where = state_dir.stat()  # a copy of the directory belongs to another daemon
    return f"{store_id}-{where.st_dev:x}-{where.st_ino:x}"


def cgroup_prefix(mark: str) -> str:
    """Return the prefix of the names of a daemon's cgroups. The job id follows."""
    return f"progressd-{mark}-"


async def end_orphans(mark: str, grace: float) -> set[str]:
    """Stop the processes that an earlier daemon left running: SIGTERM, then SIGKILL after `grace` seconds.

    Return the jobs whose processes could not be stopped. Call this before the first child starts.
    """
    tree = Tree(partial(_known, mark))
    left = await tree.end(grace)
    cgroups = Cgroup.existing(cgroup_prefix(mark))
    populated = {job_id for job_id, one in cgroups.items() if not await trio.to_thread.run_sync(one.end)}
    if tree:
        log.warning("processes of an earlier daemon killed", processes=len(tree) - len(left))
    if left:
        log.error("cannot kill processes of an earlier daemon", processes=[str(process) for process in left])
    return {tree.label(process) for process in left} | populated


def _known(mark: str, processes: Sequence[Process]) -> Mapping[int, str]:
    """Find the job of each process with the mark or in a cgroup."""
    cgroups = Cgroup.existing(cgroup_prefix(mark))
    known = {pid: job_id for job_id, cgroup in cgroups.items() for pid in cgroup.pids()}
    marked, job = f"{MARK}={mark}".encode(), f"{JOB}=".encode()
    for process in processes:
        if marked in (entries := environment_of(process.pid)):
            jobs = [entry.removeprefix(job).decode(errors="replace") for entry in entries if entry.startswith(job)]
            known[process.pid] = jobs[0] if jobs else ""
    return known
