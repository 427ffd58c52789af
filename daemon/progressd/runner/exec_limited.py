"""A program that takes on limits and then becomes another: nothing may run between fork and exec in one with threads.

    REPORT LC_CTYPE KIND:SOFT:HARD… -- PROGRAM ARGUMENT…

REPORT is a descriptor, which is closed once PROGRAM is there. Until then a line `WHAT ERRNO` on it tells of each limit
that could not be set, and the last one, `PROGRAM ERRNO`, that there will be none. Nothing else would tell exactly:
tools such as prlimit(1) look for a program with execvp(3), which has a shell read what the kernel refuses to run.

Given to Python as text, since its file may be another one by now, and without site, which takes 10 ms; it imports
nothing of ours.
"""

import errno
import os
import resource
import signal
import sys
from typing import Final

FIRST_TO_GO: Final = 500  # added to a child's badness, of 1000 (proc(5), oom_score_adj): rather it than the daemon
BADNESS: Final = "/proc/self/oom_score_adj"
PROGRAM: Final = "PROGRAM"


def main() -> None:
    end = sys.argv.index("--")
    report, ctype, *limits = sys.argv[1:end]
    command = sys.argv[end + 1 :]

    def tell(what: str, error: OSError) -> None:
        os.write(int(report), f"{what} {error.errno}\n".encode())

    os.set_inheritable(int(report), False)
    _as_started(ctype)
    try:
        _go_first()
    except OSError as error:
        tell(BADNESS, error)
    for limit in limits:
        name, soft, hard = limit.split(":")
        try:
            _limit(name, int(soft), int(hard))
        except OSError as error:
            tell(f"RLIMIT_{name}", error)
    try:
        os.execvp(command[0], command)  # noqa: S606  # without a shell is the point
    except OSError as error:
        tell(PROGRAM, error)
    sys.exit(127)


def _as_started(ctype: str) -> None:
    """Undo what Python does to its process as it starts, for the next program would inherit it."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get("LC_CTYPE", "") != ctype:  # PEP 538; an empty one is as good as none
        del os.environ["LC_CTYPE"]
        if ctype:
            os.environ["LC_CTYPE"] = ctype


def _go_first() -> None:
    with open(BADNESS, "r+") as file:
        badness = max(FIRST_TO_GO, int(file.read()))
        file.seek(0)
        file.write(str(badness))


def _limit(name: str, soft: int, hard: int) -> None:
    """What this process itself may not exceed stays."""
    kind = getattr(resource, f"RLIMIT_{name}")
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    try:
        resource.setrlimit(kind, (soft, hard))
    except ValueError as error:  # Python's for EPERM, such as a sandbox says
        raise PermissionError(errno.EPERM, str(error)) from error


if __name__ == "__main__":
    main()
