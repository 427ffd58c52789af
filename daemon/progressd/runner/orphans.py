"""What a daemon that was killed has left running. It is known by what only its children have, never by its id alone.

Every child gets a mark in its environment, which all that it starts inherits and nobody else has: so there is no
moment at which a child is without one. Since a program may overwrite its environment (those that change their name
do), the leader of each child's session is also written down, with the time it was started at.

PR_SET_PDEATHSIG would be simpler and is wrong here: it acts when the thread ends that has started the child, and that
is one of Trio's workers.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals
from typing import Final

import msgspec
import structlog

from progressd.core.json import UNDECODABLE
from progressd.system.process_tree import Process, Tree, environment_of, look

MARK: Final = "PROGRESSD_RUNNER"  # the variable that names whose children they are
JOB: Final = "PROGRESSD_JOB_ID"

log = structlog.get_logger(__name__)


class ProcessId(msgspec.Struct, frozen=True):
    """The first process of a child's session. `started` is in clock ticks since boot (proc(5), stat, field 22)."""

    boot: str
    pid: int
    started: int


class ProcessRecords:
    """The children of whichever daemon has this state directory, one at a time. The directory must exist."""

    def __init__(self, state_dir: Path, store_id: str) -> None:
        self._records = state_dir / "children"
        where = state_dir.stat()  # a copy of the directory, and of the store in it, is another daemon's
        self.mark = f"{store_id}-{where.st_dev:x}-{where.st_ino:x}"

    @contextmanager
    def recorded(self, job_id: str, pid: int) -> Iterator[None]:
        """Keep on record that this child runs for a job. Without a record, such as on a full disk, the mark is left."""
        path = self._records / job_id
        try:
            self._records.mkdir(exist_ok=True)
            boot, seen = _boot(), look(pid)
            if boot is not None and seen is not None:
                path.write_bytes(msgspec.json.encode(ProcessId(boot, pid, seen.started)))
        except OSError as error:
            log.warning("cannot record a child", job_id=job_id, error=str(error))
        try:
            yield
        finally:
            with suppress(OSError):  # then it names a child that has ended, which does no harm
                path.unlink()

    def recorded_jobs(self) -> list[str]:
        """The jobs whose children may have been left behind. Blocks."""
        return os.listdir(self._records) if self._records.is_dir() else []

    async def end_left_over(self, grace: float) -> set[str]:
        """End what an earlier daemon has left: SIGTERM, and SIGKILL `grace` seconds later. Not while children run.

        The jobs of what could not be ended.
        """
        tree = Tree(self._known)
        left = await tree.end(grace, _tell)
        if left:
            log.error("cannot end what an earlier daemon left running", processes=[str(process) for process in left])
        jobs = {tree.label(process) for process in left}
        for job_id in set(self.recorded_jobs()) - jobs:
            (self._records / job_id).unlink(missing_ok=True)
        return jobs

    def _known(self, processes: Sequence[Process]) -> Mapping[int, str]:
        """Find the job of each process that has the mark, or is in the session of a leader on record."""
        leaders = self._leaders()
        mark = f"{MARK}={self.mark}".encode()
        known = dict[int, str]()
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
        """Return the jobs of the leaders on record that still run: until they end, no other session has their id."""
        leaders = dict[int, str]()
        boot = _boot()
        for job_id in self.recorded_jobs():
            with suppress(FileNotFoundError, *UNDECODABLE):  # such as one that was not written to its end
                leader = msgspec.json.decode((self._records / job_id).read_bytes(), type=ProcessId)
                if leader.boot == boot and (now := look(leader.pid)) and now.started == leader.started:
                    leaders[leader.pid] = job_id
        return leaders


def _tell(number: Signals, count: int) -> None:
    log.warning("ending what an earlier daemon left running", processes=count, signal=number.name)


def _boot() -> str | None:
    """Names this run of the machine, if it may be known: after the next, process ids and times mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # systemd's ProcSubset=pid hides it
        return None
