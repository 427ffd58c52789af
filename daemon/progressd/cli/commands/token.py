"""`progressd token`: create a watch token."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from progressd.cli.commands.keys import duration, state_dir_option
from progressd.cli.options import config_option, daemon_here


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option(
    "--expires",
    "lifetime",
    metavar="DURATION",
    callback=duration,
    help="When the token expires, such as in 8h.  [default: auth.token_lifetime]",
)
@state_dir_option
@config_option
def token(job_id: str | None, lifetime: float | None, state_dir: Path | None, config_path: Path | None) -> None:
    """Create and print a token to watch one job, or all jobs, of a daemon on this machine.

    Put it into a URL, for clients that cannot send a header: /ws/jobs/JOB?token=TOKEN or
    /api/jobs/JOB/events?token=TOKEN. Its holder can watch that job and do nothing else. The first eight characters of
    the job's id are enough.

    \b
    Examples:
      progressd token 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c
      progressd token --expires 8h
    """
    from progressd.admin import maintenance
    from progressd.auth.watch_tokens import new_token, secret_from
    from progressd.cli.remote import is_abbreviated, the_only_id
    from progressd.core.errors import NotFound
    from progressd.core.events import checked_job_id
    from progressd.core.messages import ALL_JOBS, job_topic

    settings = daemon_here(config_path, state_dir, "auth.token_secret_file")
    if job_id is not None:
        if is_abbreviated(job_id):
            job_id = the_only_id(job_id, maintenance.ids_beginning(settings.state_dir, job_id.lower()))
        job_id = checked_job_id(job_id)
        if not maintenance.may_have(settings.state_dir, job_id):
            raise NotFound(f"there is no job {job_id} in the state directory {settings.state_dir}")
    topic = ALL_JOBS if job_id is None else job_topic(job_id)
    seconds = settings.auth.token_lifetime if lifetime is None else lifetime
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    click.echo(new_token(secret_from(settings.auth.token_secret_file), topic, end))
