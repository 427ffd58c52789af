"""`progressd cancel`: stop a job."""

import click

from progressd.cli.options import complete_unfinished
from progressd.cli.remote import Remote, remote_options


@click.command()
@click.argument("job_id", metavar="JOB", shell_complete=complete_unfinished)
@remote_options
def cancel(job_id: str, remote: Remote) -> None:
    """Cancel a job that has not finished.

    \b
    Example:
      progressd cancel 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c
    """
    from progressd.cli.remote import whole_id

    with remote.client() as client:
        job = client.cancel(whole_id(client, job_id))
    click.echo(f"{job['id']} {job['status']}")
