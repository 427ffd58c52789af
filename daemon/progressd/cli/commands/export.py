"""`progressd jobs export`: print every job, for other programs."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from progressd.cli.options import state_dir, state_dir_options
from progressd.core.messages import JobStatus


@click.command()
@click.option(
    "--status",
    "statuses",
    type=click.Choice([str(status) for status in JobStatus]),
    multiple=True,
    help="Only jobs with this status; repeatable.",
)
@state_dir_options
def export(statuses: Sequence[str], config_path: Path | None, **given: str | None) -> None:
    """Print every job as one line of JSON, the oldest first.

    It reads the database of a daemon, running or not, and prints all jobs in the format of progressd jobs --json. Their
    progress may be up to a second old.

    \b
    Examples:
      progressd jobs export > jobs.ndjson
      progressd jobs export --status failed --state-dir /var/lib/progressd | jq -r .error | sort | uniq -c
    """
    import msgspec

    from progressd.admin import maintenance

    wanted = {JobStatus(status) for status in statuses} or set(JobStatus)
    encode = msgspec.json.Encoder().encode
    for job in maintenance.export(state_dir(config_path, given["state_dir"]), wanted):
        sys.stdout.buffer.write(encode(job) + b"\n")
    sys.stdout.flush()
