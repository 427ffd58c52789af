"""`progressd backup`: a copy of the database, made while the daemon runs."""

from pathlib import Path

import click

from progressd.cli.options import state_dir, state_dir_options
from progressd.cli.signals import ending_in_order


@click.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@state_dir_options
@ending_in_order()
def backup(target: Path, config_path: Path | None, **given: str | None) -> None:
    """Copy the database of a daemon, running or not, to FILE.

    The copy is consistent and checked, and never overwrites a file. It contains all jobs and their changes. The files
    of jobs are in the directory jobs beside the database: copy them after it.

    \b
    Examples:
      progressd backup /backup/progressd.db
      progressd backup --state-dir /var/lib/progressd "/backup/$(date +%F).db"
    """
    from progressd.admin import maintenance

    size = maintenance.backup(state_dir(config_path, given["state_dir"]), target)
    click.echo(f"{target}: {size / 2**20:.1f} MiB", err=True)
