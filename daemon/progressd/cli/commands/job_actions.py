"""`progressd cancel`, `progressd retry` and `progressd delete`: act on a job."""

import click

from progressd.cli.language import t
from progressd.cli.options import complete_finished, complete_retryable, complete_unfinished
from progressd.cli.remote import Remote, error_sentence, remote_options, whole_id


@click.command()
@click.argument("job_id", metavar="JOB", shell_complete=complete_unfinished)
@remote_options
def cancel(job_id: str, remote: Remote) -> None:
    """Cancel a job that has not finished.

    \b
    Example:
      progressd cancel 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c
    """
    with remote.client() as client:
        job = client.cancel(whole_id(client, job_id))
    click.echo(f"{job['id']} {job['status']}")


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

    with remote.client() as client:
        job_id = whole_id(client, job_id)
        names = {client.retry(job_id): text.name(client.job(job_id))}
    for again in names:
        click.echo(again)
    if watch:
        ctx.exit(follow(remote, list(names), names))


@click.command()
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_finished)
@remote_options
@click.pass_context
def delete(ctx: click.Context, job_ids: tuple[str, ...], remote: Remote) -> None:
    """Delete finished jobs with their files.

    Cancel a running job first. The exit status is 1 if a job was not deleted.

    \b
    Example:
      progressd delete 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c
    """
    from progressd.client.errors import APIError

    rejected = False
    with remote.client() as client:
        for job_id in job_ids:
            try:
                click.echo(f"{client.purge(whole_id(client, job_id))['id']} deleted")
            except APIError as error:
                if error.status == 401:
                    raise  # the other jobs would fail the same way
                rejected = True
                click.echo(t("Error: {message}", message=error_sentence(error, remote)), err=True)
    ctx.exit(int(rejected))
