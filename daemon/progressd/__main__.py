"""`python -m progressd` is the command `progressd`."""

from progressd.cli.main import main

main(prog_name="progressd")
