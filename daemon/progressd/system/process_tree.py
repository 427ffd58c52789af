"""Find and kill all processes of a program, including those that left its process group or session.

timeout(1) makes a new process group, setsid(1) a new session. A cgroup per job would find all processes, but cgroups
are read-only in the sandbox of the service, and not available outside systemd. So this module searches /proc.
"""

import os
import pwd
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals, pidfd_send_signal
from typing import Final, NamedTuple, TypeAlias

import trio

from progressd.system.transient import is_transient

KILL_TIMEOUT: Final = 5.0  # seconds from SIGKILL until a process counts as unkillable
MIN_KILL_SEARCHES: Final = 50  # minimum within this time, so that a clock jump does not count
KILL_SEARCH_INTERVAL: Final = 0.1  # seconds
MAX_AWAITED: Final = 100  # processes to wait for at once; each needs a descriptor

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
        """Return the effective user, by name if possible; "unknown" if the process has ended."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
            uid = int(status.partition("\nUid:")[2].split()[1])
        except OSError:
            return "unknown"
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def __str__(self) -> str:
        return f"{self.pid} ({self.name}, user {self.user})"


Known: TypeAlias = Callable[[Sequence[Process]], Mapping[int, str]]


class SignalSender:
    """Send one signal to each process, once."""

    def __init__(self, number: Signals, but_groups: Collection[int] = ()) -> None:
        self._number = number
        self._but_groups = but_groups
        self.sent = set[Identity]()
        self.forbidden = dict[Identity, Process]()

    def cleaning_up(self, members: Iterable[Process]) -> set[int]:
        """Return the members that got SIGTERM and still run. Their new children get no SIGTERM."""
        return {one.pid for one in members if one.identity in self.sent} if self._number is SIGTERM else set()

    def send(self, process: Process, descriptor: int) -> bool:
        """Send the signal. Return whether to wait for the process to end: not if SIGKILL was not permitted."""
        if process.identity not in self.sent and process.group not in self._but_groups:
            self.sent.add(process.identity)
            try:
                pidfd_send_signal(descriptor, self._number)
            except ProcessLookupError:
                pass
            except PermissionError:
                self.forbidden[process.identity] = process
        return self._number is not SIGKILL or process.identity not in self.forbidden


class Tree:
    """A set of processes: the processes that `known` selects, their descendants, and all processes found earlier.

    `known` receives all running processes and returns a label for each selected process id. It runs in a thread.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._found = dict[Identity, str]()
        self._groups = set[int]()  # process groups with only members

    def label(self, process: Process) -> str:
        """Return the label of a found process."""
        return self._found[process.identity]

    async def send(self, number: Signals, *, but_groups: Collection[int] = ()) -> list[Process]:
        """Signal all processes, except those in some groups. Return processes without permission. Raises OSError."""
        sender = SignalSender(number, but_groups)
        with ExitStack() as opened:
            await trio.to_thread.run_sync(partial(self._search, sender, opened))
        return list(sender.forbidden.values())

    async def end(self, grace: float, on_signal: Callable[[Signals, int], None] = lambda *_: None) -> list[Process]:
        """Send SIGTERM to all, and SIGKILL to the rest after `grace` seconds. Return the processes that survived.

        After SIGTERM, a process may start commands to clean up: they get no SIGTERM. The search repeats until it finds
        nothing, because a process may start children until it ends. `on_signal` receives each signal and the number of
        new processes. Raises OSError if the system lacks resources.
        """
        left = list[Process]()
        self._groups.clear()
        for number, seconds in ((SIGTERM, grace), (SIGKILL, KILL_TIMEOUT)):
            sender, until = SignalSender(number), trio.current_time() + seconds
            over, searches = False, 0
            while not over:
                before = len(sender.sent)
                with ExitStack() as opened:
                    left, awaited = await trio.to_thread.run_sync(partial(self._search, sender, opened))
                    if new := len(sender.sent) - before:
                        on_signal(number, new)
                    with trio.move_on_at(until if number is SIGTERM else trio.current_time() + KILL_SEARCH_INTERVAL):
                        for descriptor in awaited:
                            await trio.lowlevel.wait_readable(descriptor)
                searches += 1
                timed_out = trio.current_time() >= until and (number is SIGTERM or searches >= MIN_KILL_SEARCHES)
                over = timed_out or not awaited
                if number is SIGKILL or not left:
                    self._kill_groups()
            if not left:
                break
        return [process for process in left if _is_running(process)]

    def _search(self, sender: SignalSender, opened: ExitStack) -> tuple[list[Process], list[int]]:
        """Search once, and signal new processes. Return the running ones, and descriptors to wait for."""
        found, awaited = list[Process](), list[int]()
        processes, ended = _all_processes()
        members = self._members(processes)
        known = self._known(ended)
        groups = {process.group for process in members} | {process.group for process in ended if process.pid in known}
        self._groups |= groups - {process.group for process in processes if process not in members} - {os.getpgrp()}
        cleaning_up = sender.cleaning_up(members)
        for process, label in members.items():
            with ExitStack() as closing:
                try:
                    descriptor = os.pidfd_open(process.pid)
                except ProcessLookupError:
                    continue
                closing.callback(os.close, descriptor)
                if not _is_running(process):  # the descriptor may belong to a later process
                    continue
                self._found[process.identity] = label
                found.append(process)
                waits = process.parent in cleaning_up or sender.send(process, descriptor)
                if waits and len(awaited) < MAX_AWAITED:
                    awaited.append(descriptor)
                    opened.push(closing.pop_all())
        return found, awaited

    def _kill_groups(self) -> None:
        """Kill processes that a search misses: a program that forks and exits in a loop keeps its process group."""
        for group in self._groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, SIGKILL)

    def _members(self, processes: Sequence[Process]) -> dict[Process, str]:
        by_id = {process.pid: process for process in processes}
        children = defaultdict[int, list[Process]](list)
        for process in processes:
            children[process.parent].append(process)
        labels = {one.pid: self._found[one.identity] for one in processes if one.identity in self._found}
        labels |= self._known(processes)
        members = dict[Process, str]()
        waiting = [(by_id[pid], label) for pid, label in labels.items()]
        while waiting:
            process, label = waiting.pop()
            if process not in members:
                members[process] = label
                waiting += [(child, labels.get(child.pid, label)) for child in children[process.pid]]
        return members


def running() -> list[Process]:
    """Return all other running processes. Raises OSError if the system lacks resources."""
    return _all_processes()[0]


def look(pid: int) -> Process | None:
    """Return a running process. Return None if it has ended, even if not yet reaped, or is hidden."""
    process, ended = _look(pid)
    return None if ended else process


def _all_processes() -> tuple[list[Process], list[Process]]:
    """Return all other processes: the running ones, and the ended ones that are not yet reaped."""
    found = list[Process](), list[Process]()
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            process, ended = _look(int(name))
            if process is not None:
                found[ended].append(process)
    return found


def _look(pid: int) -> tuple[Process | None, bool]:
    """Return a process, and whether it has ended. None if it does not exist."""
    text = _read(pid, "stat")
    name, fields = text[text.find(b"(") + 1 : text.rfind(b")")], text[text.rfind(b")") + 1 :].split()
    if not fields:
        return None, True
    parent, group, session = map(int, fields[1:4])
    process = Process(pid, name.decode(errors="replace"), parent, group, session, int(fields[19]))
    return process, fields[0] in b"ZX" and int(fields[17]) <= 1  # other threads may outlive the main thread


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


def _is_running(process: Process) -> bool:
    now = look(process.pid)
    return now is not None and now.started == process.started
