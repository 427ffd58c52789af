"""Find and stop processes that a killed daemon left running. A process id alone does not identify a process.

Every child starts with a unique mark in its environment, which its descendants inherit. Some programs overwrite their
environment, so the leader of each child's session is recorded, too, with its start time.

PR_SET_PDEATHSIG is simpler but wrong here: its signal is sent when the thread that started the child exits, and that is
one of Trio's worker threads.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from progressd.core.json import UNDECODABLE
from progressd.system.cgroup import Cgroup
from progressd.system.process_tree import Process, Tree, environment_of, look

MARK: Final = "PROGRESSD_RUNNER"  # the environment variable with the mark of the daemon
JOB: Final = "PROGRESSD_JOB_ID"

log = structlog.get_logger(__name__)


def cgroup_prefix(mark: str) -> str:
    """Return the prefix of the names of a daemon's cgroups. The job id follows."""
    return f"progressd-{mark}-"


class ProcessId(msgspec.Struct, frozen=True):
    """The leader of a child's session. `started` is in clock ticks since boot (proc(5), stat, field 22)."""

    boot: str
    pid: int
    started: int


class ProcessRecords:
    """The recorded children of the daemon with this state directory. The directory must exist."""

    def __init__(self, state_dir: Path, store_id: str) -> None:
        self._records = state_dir / "children"
        where = state_dir.stat()  # a copy of the directory belongs to another daemon
        self.mark = f"{store_id}-{where.st_dev:x}-{where.st_ino:x}"

    @contextmanager
    def recorded(self, job_id: str, pid: int) -> Iterator[None]:
        """Record this child while it runs. If that fails, such as on a full disk, only the mark identifies it."""
        path = self._records / job_id
        try:
            self._records.mkdir(exist_ok=True)
            boot, process = _boot_id(), look(pid)
            if boot is not None and process is not None:
                path.write_bytes(msgspec.json.encode(ProcessId(boot, pid, process.started)))
        except OSError as error:
            log.warning("cannot record a child process", job_id=job_id, error=str(error))
        try:
            yield
        finally:
            with suppress(OSError):  # the record of an exited child is harmless
                path.unlink()

    def recorded_jobs(self) -> list[str]:
        """Return the jobs whose children may still run. Blocks."""
        return os.listdir(self._records) if self._records.is_dir() else []

    async def end_orphans(self, grace: float) -> set[str]:
        """Stop the processes that an earlier daemon left running: SIGTERM, then SIGKILL after `grace` seconds.

        Return the jobs whose processes could not be stopped. Call this before the first child starts.
        """
        tree = Tree(self._known)
        left = await tree.end(grace)
        cgroups = Cgroup.existing(cgroup_prefix(self.mark))
        populated = {job_id for job_id, one in cgroups.items() if not await trio.to_thread.run_sync(one.end)}
        if tree:
            log.warning("processes of an earlier daemon killed", processes=len(tree) - len(left))
        if left:
            log.error("cannot kill processes of an earlier daemon", processes=[str(process) for process in left])
        jobs = {tree.label(process) for process in left} | populated
        for job_id in set(self.recorded_jobs()) - jobs:
            (self._records / job_id).unlink(missing_ok=True)
        return jobs

    def _known(self, processes: Sequence[Process]) -> Mapping[int, str]:
        """Find the job of each process with the mark, in a cgroup, or in the session of a recorded leader."""
        leaders = self._leaders()
        mark = f"{MARK}={self.mark}".encode()
        cgroups = Cgroup.existing(cgroup_prefix(self.mark))
        known = {pid: job_id for job_id, cgroup in cgroups.items() for pid in cgroup.pids()}
        for process in processes:
            if process.session in leaders:
                known[process.pid] = leaders[process.session]
            elif mark in (entries := environment_of(process.pid)):
                jobs = [
                    entry[len(JOB) + 1 :].decode(errors="replace")
                    for entry in entries
                    if entry.startswith(f"{JOB}=".encode())
                ]
                known[process.pid] = jobs[0] if jobs else ""
        return known

    def _leaders(self) -> dict[int, str]:
        """Return the jobs of recorded leaders that still run. While a leader runs, its session id is not reused."""
        leaders = dict[int, str]()
        boot = _boot_id()
        for job_id in self.recorded_jobs():
            with suppress(FileNotFoundError, *UNDECODABLE):  # such as an incomplete record
                leader = msgspec.json.decode((self._records / job_id).read_bytes(), type=ProcessId)
                if leader.boot == boot and (now := look(leader.pid)) and now.started == leader.started:
                    leaders[leader.pid] = job_id
        return leaders


def _boot_id() -> str | None:
    """Return the id of this boot, if readable. Process ids and start times are valid only within one boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # systemd's ProcSubset=pid hides it
        return None
