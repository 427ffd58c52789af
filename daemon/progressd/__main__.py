"""`python -m progressd` is the command `progressd`."""

from progressd.cli.entry import main

main()
