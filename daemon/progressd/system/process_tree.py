"""Find all processes of a program and end them, including those that have left its process group or its session.

timeout(1) makes a process group of its own, setsid(1) a session. A cgroup for each job would find them all, but the
sandbox of the service makes cgroups read-only, and outside systemd none is ours. So /proc is searched.
"""

import os
import pwd
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals, pidfd_send_signal
from typing import Final, NamedTuple, TypeAlias

import trio

from progressd.system.transient import passes

KILL_SECONDS: Final = 5.0  # from SIGKILL until a process that has not ended is given up
KILL_SEARCHES: Final = (
    50  # at least until then, so that it takes a process more than a jump of the clock to be given up
)
LOOK_AGAIN: Final = 0.1  # seconds between two of these searches
AWAITED_MOST: Final = 100  # processes whose end is awaited at once; each takes a descriptor, which others need too

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
        """Tells it from every other process of this boot: a process id alone is used again."""
        return self.pid, self.started

    @property
    def user(self) -> str:
        """Its effective user, by name if it has one; "unknown" once the process has ended."""
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


class Sending:
    """One signal, sent to each process once."""

    def __init__(self, number: Signals, but_group: int | None = None) -> None:
        self._number = number
        self._but_group = but_group
        self.sent = set[Identity]()
        self.forbidden = dict[Identity, Process]()

    def cleaning_up(self, members: Iterable[Process]) -> set[int]:
        """Return the ids of those that were asked to end and still run: what they start is not asked."""
        return {one.pid for one in members if one.identity in self.sent} if self._number is SIGTERM else set()

    def to(self, process: Process, descriptor: int) -> bool:
        """Send it. Return whether to wait for the end of the process: not if SIGKILL is forbidden."""
        if process.identity not in self.sent and process.group != self._but_group:
            self.sent.add(process.identity)
            try:
                pidfd_send_signal(descriptor, self._number)
            except ProcessLookupError:
                pass
            except PermissionError:
                self.forbidden[process.identity] = process
        return self._number is not SIGKILL or process.identity not in self.forbidden


class Tree:
    """Processes that belong together.

    `known` gets all running processes and returns a label for the id of each that it knows to belong. It runs in a
    thread. Their descendants belong as well, and so does whatever was found once.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._found = dict[Identity, str]()
        self._groups = set[int]()  # process groups of members alone, as the searches of `end` have seen them

    def label(self, process: Process) -> str:
        """Return the label of a process that was found."""
        return self._found[process.identity]

    async def send(self, number: Signals, *, but_group: int | None = None) -> list[Process]:
        """Send a signal to all, except in one process group. Return those that we may not signal. Raises OSError."""
        sending = Sending(number, but_group)
        with ExitStack() as opened:
            await trio.to_thread.run_sync(partial(self._search, sending, opened))
        return list(sending.forbidden.values())

    async def end(self, grace: float, on_signal: Callable[[Signals, int], None] = lambda *_: None) -> list[Process]:
        """Send SIGTERM to all, and SIGKILL to those left `grace` seconds later. Return those that could not be ended.

        A process that has had SIGTERM can start commands to clean up: they get none. It searches until nothing is
        found, for a process may start others in its last moment. `on_signal` gets each signal, and to how many it is
        new. Raises OSError when the machine is short of something.
        """
        left = list[Process]()
        self._groups.clear()
        for number, seconds in ((SIGTERM, grace), (SIGKILL, KILL_SECONDS)):
            sending, until = Sending(number), trio.current_time() + seconds
            over, searches = False, 0
            while not over:
                before = len(sending.sent)
                with ExitStack() as opened:
                    left, awaited = await trio.to_thread.run_sync(partial(self._search, sending, opened))
                    if new := len(sending.sent) - before:
                        on_signal(number, new)
                    with trio.move_on_at(until if number is SIGTERM else trio.current_time() + LOOK_AGAIN):
                        for descriptor in awaited:
                            await trio.lowlevel.wait_readable(descriptor)
                searches += 1
                late = trio.current_time() >= until
                given_up = late and (number is SIGTERM or searches >= KILL_SEARCHES)
                over = given_up or not awaited
                if number is SIGKILL or not left:
                    self._kill_groups()
            if not left:
                break
        return [process for process in left if _is_running(process)]

    def _search(self, sending: Sending, opened: ExitStack) -> tuple[list[Process], list[int]]:
        """Search once, and signal what is new. Return all that runs, and descriptors that tell of its end."""
        found, awaited = list[Process](), list[int]()
        processes, ended = _all_processes()
        members = self._members(processes)
        known = self._known(ended)
        groups = {process.group for process in members} | {process.group for process in ended if process.pid in known}
        self._groups |= groups - {process.group for process in processes if process not in members} - {os.getpgrp()}
        cleaning_up = sending.cleaning_up(members)
        for process, label in members.items():
            with ExitStack() as closing:
                try:
                    descriptor = os.pidfd_open(process.pid)
                except ProcessLookupError:
                    continue
                closing.callback(os.close, descriptor)
                if not _is_running(process):  # otherwise the descriptor is of this process, and of no later one
                    continue
                self._found[process.identity] = label
                found.append(process)
                waits = process.parent in cleaning_up or sending.to(process, descriptor)
                if waits and len(awaited) < AWAITED_MOST:
                    awaited.append(descriptor)
                    opened.push(closing.pop_all())
        return found, awaited

    def _kill_groups(self) -> None:
        """Kill what a search cannot see: a program that forks and exits all the time keeps its process group."""
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
    """Look at all processes but this one. Raises OSError when the machine is short of something."""
    return _all_processes()[0]


def look(pid: int) -> Process | None:
    """Look at a process. None when it has ended, even if its parent has not waited for it yet, or is hidden from us."""
    process, ended = _look(pid)
    return None if ended else process


def _all_processes() -> tuple[list[Process], list[Process]]:
    """Look at all processes but this one: those that run, and those that have ended and were not waited for yet."""
    found = list[Process](), list[Process]()
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            process, ended = _look(int(name))
            if process is not None:
                found[ended].append(process)
    return found


def _look(pid: int) -> tuple[Process | None, bool]:
    """Look at a process, and tell whether it has ended. None when there is none."""
    text = _read(pid, "stat")
    name, fields = text[text.find(b"(") + 1 : text.rfind(b")")], text[text.rfind(b")") + 1 :].split()
    if not fields:
        return None, True
    parent, group, session = map(int, fields[1:4])
    process = Process(pid, name.decode(errors="replace"), parent, group, session, int(fields[19]))
    return process, fields[0] in b"ZX" and int(fields[17]) <= 1  # of its threads, the first may have ended alone


def environment_of(pid: int) -> list[bytes]:
    """Return the environment that a process was started with; [] when it has ended or is not ours to read."""
    return _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        if passes(error):
            raise
        return b""


def _is_running(process: Process) -> bool:
    now = look(process.pid)
    return now is not None and now.started == process.started
