"""`progressd retry`: run a job again."""

import click

from progressd.cli.options import complete_retryable
from progressd.cli.remote import Remote, remote_options


@click.command()
@click.argument("job_id", metavar="JOB", shell_complete=complete_retryable)
@click.option("--watch", "-w", is_flag=True, help="Watch the new job until it has finished.")
@remote_options
@click.pass_context
def retry(ctx: click.Context, job_id: str, watch: bool, remote: Remote) -> None:
    """Retry a job that failed or was cancelled; print the id of the new job.

    Only jobs of a pipeline can be retried. The exit status is that of progressd submit.

    \b
    Example:
      progressd retry 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c --watch
    """
    from progressd.cli import text
    from progressd.cli.follow import follow
    from progressd.cli.remote import whole_id

    with remote.client() as client:
        job_id = whole_id(client, job_id)
        names = {client.retry(job_id): text.name(client.job(job_id))}
    for again in names:
        click.echo(again)
    if watch:
        ctx.exit(follow(remote, list(names), names))
