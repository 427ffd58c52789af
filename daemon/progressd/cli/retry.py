"""`progressd retry`: once more what has failed."""

import click

from progressd.cli.parameters import complete_ended, url_option


@click.command()
@click.argument("job_id", metavar="JOB", shell_complete=complete_ended)
@click.option("--watch", "-w", is_flag=True, help="Look on until it is done, as progressd watch does.")
@url_option
@click.pass_context
def retry(ctx: click.Context, job_id: str, watch: bool, url: str) -> None:
    """Have the daemon work on a file again; print the id of the new job.

    Only for a job of a pipeline that failed or was cancelled. The exit status is that of progressd submit.

    \b
    Example:
      progressd retry 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c --watch
    """
    from progressd.cli import text
    from progressd.cli.display import display_for
    from progressd.cli.following import follow
    from progressd.client.rest import RestClient

    with RestClient(url) as client:
        names = {client.retry(job_id): text.name(client.job(job_id))}
    for again in names:
        click.echo(again)
    if watch:
        ctx.exit(follow(url, list(names), display_for(url, names, as_json=False)))
