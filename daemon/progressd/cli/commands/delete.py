"""`progressd delete`: delete finished jobs before their retention ends."""

import click

from progressd.cli.options import complete_finished
from progressd.cli.remote import Remote, remote_options


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
    from progressd.cli.remote import error_sentence, whole_id
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
                click.echo(f"Error: {error_sentence(error, remote)}", err=True)
    ctx.exit(int(rejected))
