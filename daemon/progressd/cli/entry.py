"""The program `progressd`. Simple `emit` and `run` calls are handled without click, because importing click is slow.

All other calls are passed to the click command line, which knows all options and errors.
"""

import os
import sys

INTERRUPTED = 130  # a shell's exit status after SIGINT


def main() -> None:
    """Run the command in `sys.argv`."""
    try:
        if sys.argv[1:2] == ["emit"]:
            from progressd.cli.fast_emit import emit

            emit(sys.argv[2:], os.environ)
        elif sys.argv[1:2] == ["run"]:
            from progressd.cli.run_command import run

            run(sys.argv[2:], os.environ)
    except KeyboardInterrupt:  # before a command has been started; later, `run` passes it on
        sys.exit(INTERRUPTED)
    from progressd.cli.main import main as command_line

    command_line(prog_name="progressd")
