"""`python -m progressd` is the command `progressd`."""

from progressd.cli import main

main(prog_name="progressd")
