"""Find and kill all processes of a program, including those that left its process group or session.

timeout(1) makes a new process group, setsid(1) a new session. So this module searches /proc. A search misses a program
that forks and exits all the time: only a cgroup finds it for certain. `cgroup.py` describes when a cgroup is available.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals, pidfd_send_signal
from typing import Final, NamedTuple, TypeAlias

import trio

from progressd.system.cgroup import Cgroup
from progressd.system.fs import user
from progressd.system.transient_errors import is_transient

MIN_PAUSE: Final = 0.005  # seconds between two searches, doubled each time
MAX_PAUSE: Final = 0.1  # seconds
EMPTY_SEARCHES: Final = 2  # a search misses a process whose parent has started it and exited meanwhile
KILL_SEARCHES: Final = 50  # searches after SIGKILL, until a process counts as unkillable; 5 s

Identity: TypeAlias = tuple[int, int]


class Process(NamedTuple):
    """A running process. `started` is in clock ticks since boot (proc(5), stat, field 22)."""

    pid: int
    name: str
    parent: int
    group: int
    session: int
    started: int

    @property
    def identity(self) -> Identity:
        """Return a unique identity in this boot; process ids are reused."""
        return self.pid, self.started

    @property
    def user(self) -> str:
        """Return the name of the effective user; "unknown" if the process has ended."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        except OSError:
            return "unknown"
        return user(int(status.partition("\nUid:")[2].split()[1]))

    def __str__(self) -> str:
        return f"{self.pid} ({self.name}, user {self.user})"


Known: TypeAlias = Callable[[Sequence[Process]], Mapping[int, str]]


class SignalSender:
    """Send one signal to each process, once."""

    def __init__(self, number: Signals, but_groups: Collection[int] = ()) -> None:
        self.number = number
        self._but_groups = but_groups
        self.sent = set[Identity]()
        self.forbidden = dict[Identity, Process]()

    def cleaning_up(self, members: Iterable[Process]) -> set[int]:
        """Return the members that received SIGTERM and still run. Their new children receive no SIGTERM."""
        return {one.pid for one in members if one.identity in self.sent} if self.number is SIGTERM else set()

    def send(self, process: Process, descriptor: int) -> bool:
        """Send the signal. Return whether to wait for the process to end: not if SIGKILL was not permitted."""
        if process.identity not in self.sent and process.group not in self._but_groups:
            self.sent.add(process.identity)
            try:
                pidfd_send_signal(descriptor, self.number)
            except ProcessLookupError:
                pass
            except PermissionError:
                self.forbidden[process.identity] = process
        return self.number is not SIGKILL or process.identity not in self.forbidden


class Tree:
    """A set of processes: the processes that `known` selects, their descendants, and all processes found earlier.

    `known` receives all running processes and returns a label for each selected process id. It runs in a thread. All
    processes in a `cgroup` belong to the set, too.
    """

    def __init__(self, known: Known, cgroup: Cgroup | None = None) -> None:
        self.cgroup = cgroup
        self._known = known
        self._found = dict[Identity, str]()

    def __len__(self) -> int:
        """Return the number of processes found so far."""
        return len(self._found)

    def label(self, process: Process) -> str:
        """Return the label of a found process."""
        return self._found[process.identity]

    async def send(self, number: Signals, *, but_groups: Collection[int] = ()) -> list[Process]:
        """Signal all processes, except those in some groups. Return processes without permission. Raises OSError."""
        sender = SignalSender(number, but_groups)
        await trio.to_thread.run_sync(self._search, sender)
        return list(sender.forbidden.values())

    async def end(self, grace: float) -> list[Process]:
        """Send SIGTERM to all, and SIGKILL to the rest after `grace` seconds. Return the processes that survived.

        After SIGTERM, a process may start commands to clean up: they get no SIGTERM. The search repeats until it finds
        nothing, because a process may start children until it ends. Raises OSError if the system lacks resources.
        """
        until = trio.current_time() + grace
        left, all_ended = await self._signal_until(SignalSender(SIGTERM), lambda: trio.current_time() >= until)
        if not all_ended:
            searches = iter(range(KILL_SEARCHES))
            left, _ = await self._signal_until(SignalSender(SIGKILL), lambda: next(searches, None) is None)
        return left

    async def _signal_until(self, sender: SignalSender, over: Callable[[], bool]) -> tuple[list[Process], bool]:
        """Signal the processes until none is left to wait for, or the time is over.

        Return the running ones, and whether all have ended.
        """
        pause, empty, search = MIN_PAUSE, 0, self._search_cgroup
        while True:
            left, waits = await trio.to_thread.run_sync(search, sender)
            search = self._search
            empty = 0 if left or (self.cgroup and self.cgroup.is_populated()) else empty + 1
            if empty == EMPTY_SEARCHES or (left and not waits) or over():
                return left, empty > 0
            await trio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)

    def _search_cgroup(self, sender: SignalSender) -> tuple[list[Process], bool]:
        """Search once while the processes of the cgroup cannot start others. SIGKILL goes to all of them at once."""
        with self.cgroup.frozen() if self.cgroup else contextlib.nullcontext():
            found = self._search(sender)
        if self.cgroup and sender.number is SIGKILL:
            self.cgroup.kill()
        return found

    def _search(self, sender: SignalSender) -> tuple[list[Process], bool]:
        """Search once, and signal new processes. Return the running ones, and whether to wait for any."""
        found, waits = list[Process](), False
        members = self._members(running())
        cleaning_up = sender.cleaning_up(members)
        for process, label in members.items():
            self._found[process.identity] = label
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            try:
                if is_running(process):  # otherwise the descriptor may belong to a later process
                    found.append(process)
                    waits |= process.parent in cleaning_up or sender.send(process, descriptor)
            finally:
                os.close(descriptor)
        return found, waits

    def _members(self, processes: Sequence[Process]) -> dict[Process, str]:
        by_id = {process.pid: process for process in processes}
        children = defaultdict[int, list[Process]](list)
        for process in processes:
            children[process.parent].append(process)
        labels = {one.pid: self._found[one.identity] for one in processes if one.identity in self._found}
        labels |= self._known(processes)
        for pid in self.cgroup.pids() if self.cgroup else ():
            labels.setdefault(pid, "")
        members = dict[Process, str]()
        waiting = [(by_id[pid], label) for pid, label in labels.items() if pid in by_id]
        while waiting:
            process, label = waiting.pop()
            if process not in members:
                members[process] = label
                waiting += [(child, labels.get(child.pid, label)) for child in children[process.pid]]
        return members


def running() -> list[Process]:
    """Return all other running processes. Raises OSError if the system lacks resources."""
    own = os.getpid()
    found = [look(int(name)) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]
    return [process for process in found if process is not None]


def look(pid: int) -> Process | None:
    """Return a running process. Return None if it has ended, even if not yet reaped, or is hidden."""
    text = _read(pid, "stat")
    name, fields = text[text.find(b"(") + 1 : text.rfind(b")")], text[text.rfind(b")") + 1 :].split()
    if not fields or (fields[0] in b"ZX" and int(fields[17]) <= 1):  # other threads may outlive the main thread
        return None
    parent, group, session = map(int, fields[1:4])
    return Process(pid, name.decode(errors="replace"), parent, group, session, int(fields[19]))


def describe_exit(program: str, status: int) -> str:
    """Return a description of a failure. A negative status is a signal."""
    if status > 0:
        return f"{program} failed with exit status {status}"
    try:
        return f"{program} was killed by {Signals(-status).name}"
    except ValueError:  # most real-time signals have no name
        return f"{program} was killed by signal {-status}"


def environment_of(pid: int) -> list[bytes]:
    """Return the initial environment of a process; [] if it has ended or access is denied."""
    return _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        if is_transient(error):
            raise
        return b""


def is_running(process: Process) -> bool:
    """Return whether a process still runs. A later process with the same id does not count."""
    now = look(process.pid)
    return now is not None and now.started == process.started
