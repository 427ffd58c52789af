"""`progressd logs`: print the log of a job."""

import sys

import click

from progressd.cli.options import complete_job
from progressd.cli.remote import Remote, remote_options

DEFAULT_TAIL = 1000


@click.command()
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@click.option("--follow", "-f", is_flag=True, help="Keep printing new lines until the job has finished.")
@click.option("--lines", "-n", type=click.IntRange(0), metavar="N", help="Begin with the last N lines.")
@click.option("--since", metavar="TIME", help="Begin at a time (2026-01-31T12:00), or this long ago (10m).")
@click.option("--times", "-t", is_flag=True, help="Print the time of each line.")
@remote_options
@click.pass_context
def logs(
    ctx: click.Context, job_id: str, follow: bool, lines: int | None, since: str | None, times: bool, remote: Remote
) -> None:
    """Print the log of a job: its standard output and standard error.

    Both streams are printed to standard output, with their colours if it is a terminal. If a log is long, only its
    beginning and its end are kept, and a line says how much is missing. If the connection breaks, the command
    reconnects, and no line is missing or printed twice.

    \b
    Examples:
      progressd logs 6e4d1c9e
      progressd logs -f -n 20 6e4d1c9e
      progressd logs --since 10m 6e4d1c9e | grep -i error
    """
    from progressd.cli.log_output import print_log
    from progressd.cli.remote import whole_id

    if lines is not None and since is not None:
        raise click.UsageError("give only one of --lines and --since")
    with remote.client() as client:
        job_id = whole_id(client, job_id)
        client.job(job_id)  # the error for an unknown job
    query = {"since": since} if since is not None else {"tail": str(lines)} if lines is not None else {}
    ctx.exit(print_log(remote, job_id, query, follow=follow, times=times, colours=sys.stdout.isatty()))
