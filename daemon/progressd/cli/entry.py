"""The program `progressd`. `progressd run` begins here, because click takes long to import and the command waits.

Arguments that this path does not fully understand go to the command line, which knows all options and errors.
"""

import os
import sys

INTERRUPTED = 130  # a shell's exit status after SIGINT


def main() -> None:
    """Run the command in `sys.argv`."""
    if sys.argv[1:2] == ["run"]:
        try:
            _run(sys.argv[2:])
        except KeyboardInterrupt:  # before the command has been started; later, it is passed on
            sys.exit(INTERRUPTED)
    from progressd.cli.main import main as command_line

    command_line(prog_name="progressd")


def _run(arguments: list[str]) -> None:
    """Run a command and exit. Return if the command line has to handle this."""
    from progressd.client.run.options import parsed

    options = parsed(arguments, os.environ)
    if options is None:
        return
    from progressd.cli.run_command import prepared, run_command
    from progressd.client.errors import ClientError
    from progressd.core.errors import ProgressdError

    try:
        plan = prepared(options)
    except (ClientError, ProgressdError):  # the command line prints it
        return
    sys.exit(run_command(options, plan))
