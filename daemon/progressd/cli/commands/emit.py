"""`progressd emit`: report from a script."""

import math
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from progressd.cli.options import complete_unfinished
from progressd.cli.remote import Remote, remote_options
from progressd.client import values

# A script waits for each report, so an unreachable daemon must not delay it for long.
CONNECT_TIMEOUT: Final = 3.0  # seconds
ANSWER_TIMEOUT: Final = 10.0  # seconds


@click.command()
@click.argument("step_name", metavar="[STEP]", required=False, default="")
@click.option(
    "--job",
    "job_id",
    metavar="JOB",
    envvar="PROGRESSD_JOB_ID",
    show_envvar=True,
    shell_complete=complete_unfinished,
    help="The job to report on.",
)
@click.option("--step", "-n", type=click.IntRange(0, 2**53), help="The number of steps that are done.")
@click.option("--total", "-t", type=click.IntRange(0, 2**53), help="The total number of steps.")
@click.option("--percent", type=click.FloatRange(0, 100), help="The progress, if steps do not express it.")
@click.option("--completed", is_flag=True, help="The job has completed.")
@click.option("--failed", metavar="REASON", help="The job has failed.")
@remote_options
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="PROGRESSD_SOCKET",
    show_envvar=True,
    help="The Unix socket of the daemon, instead of --url. It needs no key.",
)
@click.pass_context
def emit(
    ctx: click.Context,
    step_name: str,
    job_id: str | None,
    step: int | None,
    total: int | None,
    percent: float | None,
    completed: bool,
    failed: str | None,
    remote: Remote,
    socket: Path | None,
) -> None:
    """Report the progress or the end of a job.

    In a pipeline or a command of progressd run, environment variables identify the job and the daemon.

    \b
    Examples:
      progressd emit --step 3 --total 12 "Upscaling"
      progressd emit --job 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c --failed "no space left"
    """
    if job_id is None:
        raise click.UsageError("no job given: use --job, or set PROGRESSD_JOB_ID")
    job_id = values.encodable(job_id)
    event = _event(step_name, step, total, percent, completed, failed)
    if socket is not None and ctx.get_parameter_source("url") is ParameterSource.DEFAULT:
        from progressd.client.transport import report

        report(socket, job_id, event, ANSWER_TIMEOUT)
        return
    from progressd.cli.remote import whole_id

    with remote.client(timeout=ANSWER_TIMEOUT, connect_timeout=CONNECT_TIMEOUT) as client:
        client.report(whole_id(client, job_id), event)


def _event(
    step_name: str, step: int | None, total: int | None, percent: float | None, completed: bool, failed: str | None
) -> dict[str, Any]:
    moved = bool(step_name) or any(number is not None for number in (step, total, percent))
    if moved + completed + (failed is not None) != 1:
        raise click.UsageError("report one of these: progress, --completed or --failed")
    if percent is not None and math.isnan(percent):
        raise click.BadParameter("nan is not in the range 0<=x<=100.", param_hint="--percent")
    if completed:
        return {"type": "completed", "data": {}}
    if failed is not None:
        return {"type": "error", "data": {"message": values.text(failed, values.MAX_SENTENCE)}}
    name = values.text(step_name, values.MAX_STEP)
    data = {"current_step": step or 0, "total_steps": total or 0, "step_name": name}
    return {"type": "progress", "data": data if percent is None else {**data, "percent": percent}}
