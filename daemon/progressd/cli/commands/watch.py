"""`progressd watch`: watch a job until its end, or all jobs."""

import os
import sys
from collections.abc import Mapping

import click

from progressd.cli.options import complete_job, selection_options
from progressd.cli.remote import Remote, remote_options
from progressd.core.messages import JobStatus

MAX_INTERVAL = 60.0  # seconds, as the daemon permits


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False, shell_complete=complete_job)
@click.option("--json", "as_json", is_flag=True, help="Print each message as it arrives: one line of JSON.")
@selection_options
@click.option(
    "--interval",
    type=click.FloatRange(0, MAX_INTERVAL),
    metavar="SECONDS",
    help="Receive the progress of each job at most once in this time.",
)
@remote_options
@click.pass_context
def watch(
    ctx: click.Context,
    job_id: str | None,
    as_json: bool,
    statuses: tuple[str, ...],
    kind: str,
    labels: Mapping[str, str],
    host: str,
    search: str,
    interval: float | None,
    remote: Remote,
) -> None:
    """Watch all jobs in a list, or one job until it ends.

    On a terminal, the list takes the whole screen: press ? for its keys and q to quit. In a pipe, all jobs become one
    line per change: time, name, change and job id, separated by tabs. JOB shows a live bar on a terminal, and one line
    per message in a pipe. Both reconnect automatically and miss no state change.

    The exit status is 0 if the job completed or you quit, 1 if the job failed or was cancelled, 130 if you interrupt
    the watch.

    \b
    Examples:
      progressd watch
      progressd watch --status failed --label team=scan
      progressd watch 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c && echo done
      progressd watch --json | jq -r 'select(.type == "completed").data.download_url'
    """
    from progressd.cli import text
    from progressd.cli.remote import ID_LENGTH, whole_id

    if job_id is None:
        from progressd.cli.screen.rows import Filter, Selection

        given = Filter(frozenset(map(JobStatus, statuses)), kind, host, labels, search)
        if not as_json and sys.stdin.isatty() and text.can_redraw(sys.stdout, os.environ):
            from progressd.cli.screen.app import watch_screen

            ctx.exit(watch_screen(remote, given, interval))
        from progressd.cli.follow import follow_all

        wanted = (lambda _: True) if given == Filter() else Selection(given).admits
        ctx.exit(follow_all(remote, wanted, as_json=as_json, interval=interval or 0.0))
    if statuses or kind or labels or host or search:
        raise click.UsageError("--status, --kind, --label, --host and --search select among all jobs: omit JOB")
    from progressd.cli.follow import follow

    names = {}
    on_terminal = sys.stdout.isatty() and not as_json
    if on_terminal or len(job_id) < ID_LENGTH:
        with remote.client() as client:
            job_id = whole_id(client, job_id)
            if on_terminal:
                job = client.job(job_id)
                job_id = job["id"]
                names = {job_id: text.name(job)}
    ctx.exit(follow(remote, [job_id], names, as_json=as_json, interval=interval or 0.0))
