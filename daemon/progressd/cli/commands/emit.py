"""`progressd emit`: a script says how far it is."""

import math
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from progressd.cli.options import complete_unfinished
from progressd.cli.remote import Remote, remote_options
from progressd.client import values

# A script waits for each report: a daemon that is away must not hold it up for long.
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
    help="The job that it is about.",
)
@click.option("--step", "-n", type=click.IntRange(0, 2**53), help="How many steps are done.")
@click.option("--total", "-t", type=click.IntRange(0, 2**53), help="How many there are.")
@click.option("--percent", type=click.FloatRange(0, 100), help="How far it is, where steps do not tell.")
@click.option("--completed", is_flag=True, help="The job has ended well.")
@click.option("--failed", metavar="WHY", help="The job has failed.")
@remote_options
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="PROGRESSD_SOCKET",
    show_envvar=True,
    help="Or its Unix socket, which takes no key.",
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
    """Report on a job: how far it is, or that it has ended.

    In a pipeline, and in a command of progressd run, it knows the job and the daemon from its environment.

    \b
    Examples:
      progressd emit --step 3 --total 12 "Upscaling"
      progressd emit --job 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c --failed "no space left"
    """
    if job_id is None:
        raise click.UsageError("there is no PROGRESSD_JOB_ID here, so --job has to name the job")
    job_id = values.encodable(job_id)
    event = _event(step_name, step, total, percent, completed, failed)
    if socket is not None and ctx.get_parameter_source("url") is ParameterSource.DEFAULT:
        from progressd.client.transport import report

        report(socket, job_id, event, ANSWER_TIMEOUT)
        return
    from progressd.cli.job_ids import whole_id

    with remote.client(timeout=ANSWER_TIMEOUT, connect_timeout=CONNECT_TIMEOUT) as client:
        client.report(whole_id(client, job_id), event)


def _event(
    step_name: str, step: int | None, total: int | None, percent: float | None, completed: bool, failed: str | None
) -> dict[str, Any]:
    moved = bool(step_name) or any(number is not None for number in (step, total, percent))
    if moved + completed + (failed is not None) != 1:
        raise click.UsageError("say one thing: how far the job is, --completed or --failed")
    if percent is not None and math.isnan(percent):
        raise click.BadParameter("nan is not in the range 0<=x<=100.", param_hint="--percent")
    if completed:
        return {"type": "completed", "data": {}}
    if failed is not None:
        return {"type": "error", "data": {"message": values.text(failed, values.MAX_SENTENCE)}}
    name = values.text(step_name, values.MAX_STEP)
    data = {"current_step": step or 0, "total_steps": total or 0, "step_name": name}
    return {"type": "progress", "data": data if percent is None else {**data, "percent": percent}}
