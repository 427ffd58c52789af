"""Start a command, in its own pseudo-terminal if the user has a terminal.

This module imports little, because the command waits for the imports. Call `launch` while this process has only one
thread: only then is it safe to fork.
"""

import contextlib
import errno
import fcntl
import os
import signal
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, NoReturn

from progressd.client.run.terminal import Terminal, moved_up, unread
from progressd.system.cgroup import Cgroup

TO_FOREGROUND: Final = signal.SIGRTMIN  # signals for the session leader
TO_BACKGROUND: Final = signal.SIGRTMIN + 1
TYPED: Final = frozenset({signal.SIGINT, signal.SIGQUIT})  # signals from a terminal to its foreground process group
PASSED_ON: Final = (*TYPED, signal.SIGHUP, signal.SIGTERM)  # signals that are passed on to the command
CAUGHT: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them
PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)
UNSTARTED: Final = 127

Streams = Mapping[int, int]
"""The descriptors of a new program, each with a descriptor of this process that becomes it."""


def become_reaper() -> list[int]:
    """Adopt descendants that lose their parent. Return the children that this process already has."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # on failure, nothing is adopted
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


@contextlib.contextmanager
def recorded_signals() -> Iterator[list[int]]:
    """Give a list to which each signal for the command is added, except those ignored, as under nohup(1)."""
    received = list[int]()
    before = {number: signal.getsignal(number) for number in passed_on()}
    for number in before:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def passed_on() -> list[int]:
    """Return the signals that are passed on. Signals that are already ignored stay ignored."""
    return [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]


class Command:
    """A started command.

    `pid`: the child of this process: the command or its session leader. `sources`: the streams to read, each with the
    descriptor to read from. Streams 1 and 2 are passed on; a stream with another number only carries progress.
    `terminal`: the user's terminal, if the command has a pseudo-terminal. `master`: this process's end of the
    pseudo-terminal. `report`: reads the status from the session leader; None without one. `cgroup`: contains the
    command and what it starts, where this is possible.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.cgroup = Cgroup.new(f"progressd-run-{os.getpid()}")
        self.pid = 0
        self.sources: dict[int, int] = {}
        self.terminal: Terminal | None = None
        self.master: int | None = None
        self.report: int | None = None

    @property
    def descriptors(self) -> set[int]:
        """Return the descriptors by which this process follows the command."""
        report = () if self.report is None else (self.report,)
        terminal = () if self.terminal is None else (self.terminal.descriptor,)
        return {*self.sources.values(), *report, *terminal}

    @property
    def has_session(self) -> bool:
        """Return whether the command has a session and a controlling terminal of its own."""
        return self.report is not None


def launch(
    command: Sequence[str],
    environment: Mapping[str, str],
    progress_fd: int | None = None,
    *,
    keeps_streams: bool = False,
) -> Command:
    """Start a command. Raises OSError if that fails.

    A stream that is a terminal becomes a pseudo-terminal, any other stream a pipe. If the user types at the terminal
    that shows the output, the command gets its own session, so that job control and /dev/tty work on the
    pseudo-terminal too. `keeps_streams`: the command inherits the streams of this process instead. `progress_fd`: a
    descriptor of the command that only this process reads.
    """
    started = Command(command[0])
    streams = dict[int, int]()
    slave = None if keeps_streams else _replace_streams(started, streams)
    if progress_fd is not None:
        started.sources[progress_fd], streams[progress_fd] = _pipe()
    session = None
    if slave is not None and os.isatty(0) and os.isatty(1):  # the user types at the terminal that shows the output
        streams[0] = slave
        session = _new_session(started, slave)
    failed, failing = _pipe()
    passed = {*streams.values(), failing, *([session.reporting] if session else [])}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def run() -> NoReturn:
        if started.cgroup is not None:
            started.cgroup.enter()
        _exec(command, environment, streams, blocked, failing)

    try:
        started.pid = os.fork()
        if started.pid == 0:
            if session is not None:
                _lead_session(run, session, passed | started.descriptors | {failed})
            run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for descriptor in passed:
        os.close(descriptor)
    _check_started(started, failed)
    return started


class _Session(NamedTuple):
    """The session of a command. Its leader has the terminal `slave`, and reports to `reporting`.

    `foreground`: the command runs in the foreground.
    """

    slave: int
    reporting: int
    foreground: bool


def _new_session(started: Command, slave: int) -> _Session:
    """Prepare a session on the pseudo-terminal of the command."""
    assert started.terminal is not None
    assert started.master is not None
    started.report, reporting = _pipe()
    foreground = started.terminal.in_foreground()
    if foreground:
        started.terminal.enter_foreground(started.master)
    return _Session(slave, reporting, foreground)


def _check_started(started: Command, failed: int) -> None:
    """Wait until the command has been started. Raises OSError if it cannot be started."""
    with open(failed, "rb") as failure:
        text = failure.read()
    if text:
        os.waitpid(started.pid, 0)
        if started.cgroup is not None:
            started.cgroup.remove()
        if started.terminal is not None:
            started.terminal.restore()
        raise OSError(int(text), os.strerror(int(text)), started.program)


def _replace_streams(started: Command, streams: dict[int, int]) -> int | None:
    """Add pipes and a pseudo-terminal for the output. Return the end of the pseudo-terminal for the command, if any."""
    slave = None
    for number in (1, 2):
        if not is_open(number):
            continue
        if os.isatty(number):
            if slave is None:
                started.terminal = Terminal(number)
                started.master, slave = started.terminal.new_pty()
                started.sources[number] = started.master
            streams[number] = slave
        else:
            started.sources[number], streams[number] = _pipe()
    return slave


def is_open(descriptor: int) -> bool:
    """Return whether this process has the descriptor."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends other programs do not inherit."""
    reading, writing = map(moved_up, os.pipe())
    return reading, writing


def _exec(
    command: Sequence[str], environment: Mapping[str, str], streams: Streams, blocked: set[int], failing: int
) -> NoReturn:
    """Become the command. Report a failure."""
    try:
        for target, source in streams.items():
            os.dup2(source, target)
        for number in (*CAUGHT, *PASSED_ON):
            if number in CAUGHT or callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.execvpe(command[0], list(command), environment)  # noqa: S606, no shell
    except OSError as error:
        os.write(failing, str(error.errno).encode())
    except ValueError:  # a null byte
        os.write(failing, str(errno.EINVAL).encode())
    finally:
        os._exit(UNSTARTED)


def _lead_session(run: Callable[[], NoReturn], session: _Session, inherited: set[int]) -> NoReturn:
    """Lead the session of the command, and report when it stops or exits.

    The kernel stops a process on Ctrl-Z only if its parent is in the same session, but in another process group.
    """
    try:
        os.setsid()
        fcntl.ioctl(session.slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        command = os.fork()
        if command == 0:
            os.setpgid(0, 0)
            if session.foreground:
                os.tcsetpgrp(session.slave, os.getpid())
            run()
        for descriptor in inherited - {session.slave, session.reporting}:
            os.close(descriptor)
        _report_changes(command, session.slave, session.reporting)
    finally:
        os._exit(0)


def _report_changes(command: int, terminal: int, reporting: int) -> None:
    """Report until the command exits. All signals are blocked."""
    group = command  # the group that was in the foreground
    while True:
        got = signal.sigwaitinfo({signal.SIGCHLD, signal.SIGHUP, TO_FOREGROUND, TO_BACKGROUND})
        if got.si_signo == signal.SIGHUP and got.si_code > 0:  # the kernel's: `progressd run` was killed
            os.killpg(command, signal.SIGHUP)
            return
        with contextlib.suppress(OSError):
            if got.si_signo == TO_BACKGROUND:
                if (now := os.tcgetpgrp(terminal)) != os.getpgrp():
                    group = now
                os.tcsetpgrp(terminal, os.getpgrp())
            if got.si_signo == TO_FOREGROUND:
                os.tcsetpgrp(terminal, group)
            if got.si_signo in (TO_FOREGROUND, TO_BACKGROUND):
                os.killpg(command, signal.SIGCONT)
        while (found := os.waitpid(command, os.WNOHANG | os.WUNTRACED)) != (0, 0):
            _, status = found
            if os.WIFSTOPPED(status):
                os.write(reporting, b"stopped\n")
                continue
            with contextlib.suppress(OSError):
                # Our exit sends SIGHUP to the foreground group: it must not reach processes that keep running.
                os.tcsetpgrp(terminal, os.getpgrp())
            os.write(reporting, f"unread {unread(terminal).hex()}\n".encode())
            os.write(reporting, f"exited {os.waitstatus_to_exitcode(status)}\n".encode())
            return
