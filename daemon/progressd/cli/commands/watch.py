"""`progressd watch`: watch a job until its end, or all jobs."""

import os
import sys
from collections.abc import Mapping

import click

from progressd.cli.options import complete_job
from progressd.cli.remote import Remote, remote_options


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False, shell_complete=complete_job)
@click.option("--json", "as_json", is_flag=True, help="Print each message as it arrives: one line of JSON.")
@remote_options
@click.pass_context
def watch(ctx: click.Context, job_id: str | None, as_json: bool, remote: Remote) -> None:
    """Watch a job until it ends, or all jobs until Ctrl-C.

    On a terminal it shows live bars. In a pipe it prints one line of text for each message. It reconnects automatically
    and misses no state change.

    The exit status is 0 if the job completed, 1 if it failed or was cancelled, 130 if you interrupt it.

    \b
    Examples:
      progressd watch
      progressd watch 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c && echo done
      progressd watch --json | jq -r 'select(.type == "completed").data.download_url'
    """
    from progressd.cli import text
    from progressd.cli.follow import follow
    from progressd.cli.remote import ID_LENGTH, whole_id

    if job_id is None and not as_json and takes_screen(os.environ):
        from progressd.cli.screen.app import watch_screen
        from progressd.cli.screen.rows import Filter

        ctx.exit(watch_screen(remote, Filter()))
    names = {}
    on_terminal = sys.stdout.isatty() and not as_json
    if job_id is not None and (on_terminal or len(job_id) < ID_LENGTH):
        with remote.client() as client:
            job_id = whole_id(client, job_id)
            if on_terminal:
                job = client.job(job_id)
                job_id = job["id"]
                names = {job_id: text.name(job)}
    ctx.exit(follow(remote, None if job_id is None else [job_id], names, as_json=as_json))


def takes_screen(environ: Mapping[str, str]) -> bool:
    """Return whether the terminal can show the list on its whole screen, and keys can be read from it."""
    return sys.stdin.isatty() and sys.stdout.isatty() and environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
