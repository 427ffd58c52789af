"""`progressd config`: print the settings in force, or a sample file."""

from pathlib import Path

import click

from progressd.cli.options import config_option


@click.command()
@click.option("--sample", is_flag=True, help="Print a documented config file with every setting and its default.")
@config_option
def config(config_path: Path | None, sample: bool) -> None:
    """Print the settings in force and the origin of each.

    It reads the environment and the config file, as progressd serve would in this directory.

    \b
    Examples:
      progressd config
      progressd config --sample > progressd.toml
    """
    import os

    from progressd.config import docs
    from progressd.config.load import load

    click.echo(docs.sample() if sample else docs.in_force(*load(config_path, os.environ, {})), nl=False)
