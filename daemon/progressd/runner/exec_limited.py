"""Set resource limits, then exec a program. A process with threads must not run Python code between fork and exec.

    REPORT LC_CTYPE KIND:SOFT:HARD… -- PROGRAM ARGUMENT…

REPORT is a descriptor that exec closes. For each limit that cannot be set, this program writes a line `WHAT ERRNO` to
it. A last line `PROGRAM ERRNO` means that exec failed. Tools such as prlimit(1) do not report this exactly: they use
execvp(3), which lets a shell interpret files that the kernel rejects.

Python receives this file as text, because an upgrade may replace the file. It runs without `site`, which takes 10 ms.
This file imports only the standard library.
"""

import errno
import os
import resource
import signal
import sys
from typing import Final

OOM_SCORE_ADJ: Final = 500  # the maximum is 1000; the kernel kills the child before the daemon (proc(5))
OOM_FILE: Final = "/proc/self/oom_score_adj"
PROGRAM: Final = "PROGRAM"


def main() -> None:
    end = sys.argv.index("--")
    report, ctype, *limits = sys.argv[1:end]
    command = sys.argv[end + 1 :]

    def report_error(what: str, error: OSError) -> None:
        os.write(int(report), f"{what} {error.errno}\n".encode())

    os.set_inheritable(int(report), False)
    _undo_python_startup(ctype)
    try:
        _raise_oom_score()
    except OSError as error:
        report_error(OOM_FILE, error)
    for limit in limits:
        name, soft, hard = limit.split(":")
        try:
            _set_limit(name, int(soft), int(hard))
        except OSError as error:
            report_error(f"RLIMIT_{name}", error)
    try:
        os.execvp(command[0], command)  # noqa: S606  # deliberately without a shell
    except OSError as error:
        report_error(PROGRAM, error)
    sys.exit(127)


def _undo_python_startup(ctype: str) -> None:
    """Undo changes by Python's startup that the program would inherit."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get("LC_CTYPE", "") != ctype:  # PEP 538; empty means unset
        del os.environ["LC_CTYPE"]
        if ctype:
            os.environ["LC_CTYPE"] = ctype


def _raise_oom_score() -> None:
    with open(OOM_FILE, "r+") as file:
        score = max(OOM_SCORE_ADJ, int(file.read()))
        file.seek(0)
        file.write(str(score))


def _set_limit(name: str, soft: int, hard: int) -> None:
    """Set a limit, which is at most the hard limit of this process."""
    kind = getattr(resource, f"RLIMIT_{name}")
    maximum = resource.getrlimit(kind)[1]
    if maximum != resource.RLIM_INFINITY:
        soft, hard = min(soft, maximum), min(hard, maximum)
    try:
        resource.setrlimit(kind, (soft, hard))
    except ValueError as error:  # Python raises it for EPERM, for example in a sandbox
        raise PermissionError(errno.EPERM, str(error)) from error


if __name__ == "__main__":
    main()
