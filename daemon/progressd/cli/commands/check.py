"""`progressd check`: check the database and files, and repair them."""

from pathlib import Path

import click

from progressd.cli.commands.backup import exit_on_signals
from progressd.cli.options import state_dir, state_dir_options


@click.command()
@click.option("--repair", is_flag=True, help="Repair what can be repaired; stop the daemon first.")
@state_dir_options
@exit_on_signals()
def check(repair: bool, config_path: Path | None, **given: str | None) -> None:
    """Check the database and the files of a daemon, running or not.

    It prints one line for each problem, including its repair by --repair. The exit status is 0 if there are no
    problems, or if all were repaired. A large database takes a while.

    --repair recovers a damaged database into a new one. This needs the program sqlite3 (sudo apt install sqlite3).
    It keeps the damaged database next to the new one, prints its path, and lists the lost data.

    \b
    Examples:
      progressd check
      progressd check --state-dir /var/lib/progressd --repair
    """
    from progressd.admin import maintenance

    directory = state_dir(config_path, given["state_dir"])
    left = 0
    if repair:
        for sentence, repaired in maintenance.repair(directory):
            click.echo(sentence)
            left += not repaired
    else:
        for problem in maintenance.check(directory):
            click.echo(f"{problem.sentence}: {problem.remedy}")
            left += 1
    if left:
        raise SystemExit(1)
    click.echo(f"{directory}: no problems found", err=True)
