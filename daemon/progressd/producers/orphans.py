"""What a daemon that was killed has left running. It is known by what only its children have, never by its id alone.

Every child gets a mark in its environment, which all that it starts inherits and nobody else has: so there is no
moment at which a child is without one. Since a program may overwrite its environment (those that change their name
do), the leader of each child's session is also written down, with the time it was started at.

PR_SET_PDEATHSIG would be simpler and is wrong here: it acts when the thread ends that has started the child, and that
is one of Trio's workers.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog
import trio

from progressd.core.decoding import UNDECODABLE
from progressd.shortage import in_thread, passes

MARK: Final = "PROGRESSD_RUNNER"  # the variable that names whose children they are
JOB: Final = "PROGRESSD_JOB_ID"
ROUNDS: Final = 5  # of looking and killing: what is killed may just have started another
ROUND_SECONDS: Final = 1.0  # from SIGKILL to the end of a process

log = structlog.get_logger(__name__)


class Leader(msgspec.Struct, frozen=True):
    """The first process of a child's session. `started` is in clock ticks since boot (proc(5), stat, field 22)."""

    boot: str
    pid: int
    started: int


class Orphan(NamedTuple):
    """A process by a descriptor (pidfd_open(2)), which never comes to mean another, and the job it was for."""

    descriptor: int
    job_id: str


class Children:
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
            boot, seen = _boot(), _seen(pid)
            if boot is not None and seen is not None:
                path.write_bytes(msgspec.json.encode(Leader(boot, pid, seen.started)))
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
        left: set[str] = set()
        number, seconds = signal.SIGTERM, grace
        for _ in range(1 + ROUNDS):
            with ExitStack() as opened:
                found = await in_thread(self._find)
                for orphan in found:
                    opened.callback(os.close, orphan.descriptor)
                left = {orphan.job_id for orphan in found}
                if not left:
                    break
                log.warning("ending what an earlier daemon left running", processes=len(found), signal=number.name)
                await _end(found, number, seconds)
            number, seconds = signal.SIGKILL, ROUND_SECONDS
        else:
            log.error("cannot end what an earlier daemon left running", jobs=sorted(left))
        for job_id in set(self.recorded_jobs()) - left:
            (self._records / job_id).unlink(missing_ok=True)
        return left

    def _find(self) -> list[Orphan]:
        """Raises OSError where something is wanting to look: whoever is overlooked would go on beside another."""
        leaders = self._leaders()
        found = list[Orphan]()
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                found += _looked_at(int(name), partial(self._job_of, leaders=leaders))
            except OSError as error:  # most often it has ended meanwhile, or is nothing that we may look at
                if passes(error):
                    for orphan in found:
                        os.close(orphan.descriptor)
                    raise
        return found

    def _leaders(self) -> dict[int, tuple[str, Leader]]:
        """Those on record that were started since the machine was."""
        leaders = {}
        boot = _boot()
        for job_id in self.recorded_jobs():
            with suppress(FileNotFoundError, *UNDECODABLE):  # such as one that was not written to its end
                leader = msgspec.json.decode((self._records / job_id).read_bytes(), type=Leader)
                if leader.boot == boot:
                    leaders[leader.pid] = job_id, leader
        return leaders

    def _job_of(self, pid: int, leaders: dict[int, tuple[str, Leader]]) -> str | None:
        """The job a process was started for; None if it is not one of ours, or has ended."""
        seen = _seen(pid)
        if seen is None:
            return None
        if seen.session in leaders:
            job_id, leader = leaders[seen.session]
            now = _seen(leader.pid)  # as long as the leader is there, no other session has its id
            if now is not None and now.started == leader.started:
                return job_id
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"{MARK}={self.mark}".encode() not in environment:
            return None
        return next(
            (entry[len(JOB) + 1 :].decode() for entry in environment if entry.startswith(f"{JOB}=".encode())), ""
        )


def _looked_at(pid: int, job_of: Callable[[int], str | None]) -> list[Orphan]:
    """The process, where it was started for a job. Raises OSError."""
    descriptor = os.pidfd_open(pid)  # before the look: what is seen is then this one's, or it is gone
    job_id = None
    try:
        job_id = job_of(pid)
    finally:
        if job_id is None:
            os.close(descriptor)
    return [] if job_id is None else [Orphan(descriptor, job_id)]


class Seen(NamedTuple):
    """What tells a process from others."""

    session: int
    started: int


def _seen(pid: int) -> Seen | None:
    """Look at a process; None when it has ended, whether or not somebody has waited for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, session, started = fields[0], fields[3], fields[19]
    return None if state in "ZX" else Seen(int(session), int(started))


def _boot() -> str | None:
    """Names this run of the machine, if it may be known: after the next, process ids and times mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # systemd's ProcSubset=pid hides it
        return None


async def _end(orphans: list[Orphan], number: signal.Signals, seconds: float) -> None:
    """Signal them, and wait for their ends for so long."""
    for orphan in orphans:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(orphan.descriptor, number)
    with trio.move_on_after(seconds):
        for orphan in orphans:
            await trio.lowlevel.wait_readable(orphan.descriptor)
