"""`progressd run`: run a command as a job."""

from typing import Any

import click

from progressd.cli.options import labels_option, lease_option
from progressd.cli.remote import Remote, remote_options
from progressd.client.run.options import RunOptions


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", metavar="NAME", help="The name of the job.  [default: the command, without secrets]")
@labels_option("A label of the job, in addition to host and user.")
@click.option(
    "--progress-pattern",
    "-p",
    "pattern",
    metavar="REGEX",
    help="A regular expression that finds the progress in the output, with the named groups current and total, or "
    "percent, or fraction. The group step is optional.",
)
@click.option(
    "--as",
    "preset",
    metavar="NAME",
    help='Use the preset of this program. "none": do not read the output.',
)
@click.option("--no-adapt", is_flag=True, help="Add no options to the command.")
@click.option("--no-log", is_flag=True, help="Do not keep the command's output in the job's log.")
@click.option("--explain", is_flag=True, help="Print where the progress would be found, and run nothing.")
@click.option("--verbose", "-v", is_flag=True, help="At the end, print where the progress was found.")
@lease_option("the job")
@remote_options
@click.pass_context
def run(ctx: click.Context, /, remote: Remote, **given: Any) -> None:
    """Run a command, and report it as a job, with the progress that its output shows.

    The command keeps its terminal, its input and output, and its exit status. It runs even if no daemon can be reached.
    Its output is kept as the log of the job. Cancelling the job stops the command. The command's environment contains
    PROGRESSD_JOB_ID, PROGRESSD_URL and PROGRESSD_KEY, so that it can report its progress itself.

    \b
    Examples:
      progressd run -- make -j4
      progressd run --name backup -- rsync -a /srv /backup
      progressd run -p '(?P<current>[0-9]+) of (?P<total>[0-9]+)' -- ./import.sh
    """
    from progressd.cli.run_command import prepared, run_command
    from progressd.core.errors import InvalidInput

    options = RunOptions(url=remote.url, key=remote.key, **given)
    try:
        plan = prepared(options)
    except InvalidInput as error:  # an unknown preset, or an invalid pattern
        raise click.UsageError(str(error)) from None
    ctx.exit(run_command(options, plan))
