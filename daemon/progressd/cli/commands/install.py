"""`progressd install` and `progressd uninstall`: the systemd service."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from progressd.cli.remote import Command

if TYPE_CHECKING:
    from progressd.admin.install import Step


def _confirmed(command: Command) -> Command:
    """Add `--dry-run` and `--yes`."""
    command = click.option("-n", "--dry-run", is_flag=True, help="Print the steps, and do nothing.")(command)
    return click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")(command)


@click.command()
@_confirmed
def install(dry_run: bool, yes: bool) -> None:
    """Install the daemon as a service that starts with the machine.

    It installs the systemd units, the user progressd and a config file if there is none, and starts the service. It
    lists these steps and asks before it begins. It skips completed steps, so you can run it again, for example after an
    upgrade.

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
        click.echo(f"Not possible here: {error}.\n", err=True)
    _carry_out(installing(program, sample()), "progressd is installed and running", dry_run, yes)


@click.command()
@click.option("--delete-data", is_flag=True, help="Also delete all jobs, their files and the settings.")
@_confirmed
def uninstall(delete_data: bool, dry_run: bool, yes: bool) -> None:
    """Stop the service and remove it.

    Jobs, their files and the settings are kept, unless --delete-data is given.

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
        click.echo(f"Nothing to do: {done}.")
        return
    click.echo("This will:\n" + "\n".join(f"  - {step.description}" for step in planned))
    if dry_run:
        return
    if os.geteuid() != 0:
        raise click.ClickException("only root can do this: put sudo before the command")
    if not yes:
        click.confirm("Continue?", abort=True)
    for step in planned:
        step.run()
    click.echo(f"Done: {done}.")
