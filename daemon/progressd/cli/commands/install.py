"""`progressd install` and `progressd uninstall`: the service of this machine."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from progressd.admin.install import Step

Command = TypeVar("Command", bound=Callable[..., Any])


def _asking(command: Command) -> Command:
    """`--dry-run` and `--yes`."""
    command = click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(command)
    return click.option("-y", "--yes", is_flag=True, help="Do it without asking.")(command)


@click.command()
@_asking
def install(dry_run: bool, yes: bool) -> None:
    """Make the daemon a service, which starts with the machine.

    It says what it will do and asks first: units for systemd, the user progressd, a config file where there is none,
    and the start. What is done already is left alone, so it can be run again, as after an upgrade.

    \b
    Examples:
      sudo progressd install
      progressd install --dry-run
    """
    import shutil
    import sys

    from progressd.admin.install import installing, require_possible
    from progressd.config.docs import sample
    from progressd.core.errors import InstallationFailed

    found = shutil.which("progressd") if Path(sys.argv[0]).name == "__main__.py" else shutil.which(sys.argv[0])
    program = Path(found or sys.argv[0]).absolute()
    try:
        require_possible(program)
    except InstallationFailed as error:
        if not dry_run:
            raise
        click.echo(f"It could not be done here, for {error}.\n", err=True)
    _carry_out(installing(program, sample()), "progressd is installed, and runs", dry_run, yes)


@click.command()
@click.option("--delete-data", is_flag=True, help="Delete all jobs, their files and the settings as well.")
@_asking
def uninstall(delete_data: bool, dry_run: bool, yes: bool) -> None:
    """Stop the service and take it away.

    Its jobs, their files and its settings stay, unless told otherwise.

    \b
    Examples:
      sudo progressd uninstall
      sudo progressd uninstall --delete-data
    """
    from progressd.admin.install import uninstalling

    _carry_out(uninstalling(data=delete_data), "progressd is not installed as a service", dry_run, yes)


def _carry_out(steps: "Iterable[Step]", done: str, dry_run: bool, yes: bool) -> None:
    planned = list(steps)
    if not planned:
        click.echo(f"There is nothing to do: {done}.")
        return
    click.echo("This will\n" + "\n".join(f"  - {step.words}" for step in planned))
    if dry_run:
        return
    if os.geteuid() != 0:
        raise click.ClickException("only root may do that: put sudo before the command")
    if not yes:
        click.confirm("Go on?", abort=True)
    for step in planned:
        step.do()
    click.echo(f"Done: {done}.")
