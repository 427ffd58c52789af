"""The program `progressd`. A plain `emit` begins here, because the import of click takes too long for it.

Arguments that this path does not fully understand go to the command line, which knows all options and errors.
"""

import os
import sys


def main() -> None:
    """Run the command in `sys.argv`."""
    if sys.argv[1:2] == ["emit"]:
        from progressd.cli.emit_command import emit

        emit(sys.argv[2:], os.environ)
    from progressd.cli.main import main as command_line

    command_line(prog_name="progressd")
