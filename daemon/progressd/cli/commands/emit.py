"""`progressd emit`: report from a script."""

import contextlib
import math
import os
import shlex
import signal
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import click

from progressd.cli.options import complete_unfinished
from progressd.cli.remote import Remote, is_typed, remote_options
from progressd.client import values
from progressd.client.errors import APIError, ClientError
from progressd.core import event_limits as limits

# A script waits for each report, so an unreachable daemon must not delay it for long.
CONNECT_TIMEOUT: Final = 3.0  # seconds
ANSWER_TIMEOUT: Final = 10.0  # seconds
KILLED: Final = 128  # a shell adds the number of the signal
# After a signal, dash and busybox do not run a trap for EXIT.
SHELL: Final = """\
trap 'progressd emit --exit "$?"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
"""
# The script runs without a job. It does not report on the job of `progressd run` that it may be in.
NO_JOB: Final = "export PROGRESSD_JOB_ID="


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
@click.option(
    "--step",
    "--current",
    "-n",
    "step",
    type=click.IntRange(0, limits.MAX_COUNT),
    help="The number of steps that are done.",
)
@click.option("--total", "-t", type=click.IntRange(0, limits.MAX_COUNT), help="The total number of steps.")
@click.option("--percent", type=click.FloatRange(0, 100), help="The progress in percent, instead of steps.")
@click.option("--unit", metavar="UNIT", help="What the steps count: B for bytes, pages, or any short word.")
@click.option("--phase", metavar="PHASE", help="The current phase of the job. The steps may start again in each phase.")
@click.option(
    "--eta",
    metavar="SECONDS",
    type=click.FloatRange(0, limits.MAX_ETA),
    help="The remaining time, if the script knows it better than the daemon can estimate it.",
)
@click.option(
    "--task",
    metavar="ID",
    help="Report on a task of the job, such as one of several downloads. STEP is its name.",
)
@click.option("--completed", is_flag=True, help="The job, or the task, has completed.")
@click.option("--failed", metavar="REASON", help="The job, or the task, has failed.")
@click.option(
    "--exit",
    "status",
    metavar="STATUS",
    type=click.IntRange(0, 255),
    help="End the job according to this exit status, unless it has already ended.",
)
@click.option("--new", metavar="NAME", help="Register and start a job with this name, and print its id.")
@click.option(
    "--lease",
    metavar="SECONDS",
    type=click.FloatRange(limits.MIN_LEASE, limits.MAX_LEASE),
    help="With --new: show the job as stalled after this time without a report. After three times as long, it fails.",
)
@click.option(
    "--shell", is_flag=True, help="With --new: print shell commands for eval, so that the job ends with the script."
)
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
    unit: str | None,
    phase: str | None,
    eta: float | None,
    task: str | None,
    completed: bool,
    failed: str | None,
    status: int | None,
    new: str | None,
    lease: float | None,
    shell: bool,
    remote: Remote,
    socket: Path | None,
) -> None:
    """Report the progress or the end of a job, or start one.

    In a pipeline or a command of progressd run, environment variables identify the job and the daemon.

    \b
    Examples:
      progressd emit --step 3 --total 12 "Upscaling"
      progressd emit --phase Upload --task db1 --current 73400320 --total 201326592 --unit B
      progressd emit --job 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c --failed "no space left"
      eval "$(progressd emit --new backup --shell)"
    """
    if is_typed(ctx, "url") or (not is_typed(ctx, "socket") and os.environ.get("PROGRESSD_URL")):
        socket = None
    details = _details(unit, phase, eta)
    if task is not None:
        if percent is not None or status is not None or new is not None:
            raise click.UsageError("--task does not combine with --percent, --exit and --new")
        event = _task_event(values.text(task, limits.MAX_TASK_ID), step_name, step, total, completed, failed, details)
    elif details and not (step_name or completed) and {step, total, percent, failed, status, new} == {None}:
        event = {"type": "progress", "data": details}
    else:
        event = _event(step_name, step, None if new is not None else total, percent, completed, failed, status, new)
        if details and event["type"] != "progress":
            raise click.UsageError("--unit, --phase and --eta only go with progress, not with an end or a new job")
        event["data"].update(details)
    if new is not None:
        if is_typed(ctx, "job_id"):
            raise click.UsageError("--new chooses the id of the job: leave out --job")
        registration = {**event["data"], "total_steps": total or 0, "lease_seconds": lease}
        job_id = str(uuid.uuid4())
        started = {"type": "status_change", "data": {"new_status": "processing"}}
        try:
            _send(job_id, [{"type": "job_created", "data": registration}, started], remote, socket)
        except ClientError:
            if shell:
                click.echo(NO_JOB)
            raise
        click.echo(_commands(job_id, ctx, remote, socket) if shell else job_id)
        return
    if shell or lease is not None:
        raise click.UsageError(f"{'--shell' if shell else '--lease'} needs --new")
    if job_id is None and "PROGRESSD_JOB_ID" in os.environ:  # it is empty
        return
    if job_id is None:
        raise click.UsageError("no job given: use --job, or set PROGRESSD_JOB_ID")
    job_id = values.encodable(job_id)
    try:
        if socket is not None:
            _send(job_id, [event], remote, socket)
        else:
            from progressd.cli.remote import whole_id

            with remote.client(timeout=ANSWER_TIMEOUT, connect_timeout=CONNECT_TIMEOUT) as client:
                client.report(whole_id(client, job_id), event)
    except APIError as error:
        if status is None or error.status != HTTPStatus.CONFLICT:
            raise


def _send(job_id: str, events: list[dict[str, Any]], remote: Remote, socket: Path | None) -> None:
    """Report events over the socket, if there is one. Raises APIError for the first that is rejected."""
    from progressd.client.transport import EventTransport, UnixSocketTransport

    daemon: EventTransport = (
        remote.client(timeout=ANSWER_TIMEOUT, connect_timeout=CONNECT_TIMEOUT)
        if socket is None
        else UnixSocketTransport(socket, ANSWER_TIMEOUT)
    )
    with contextlib.closing(daemon):
        for answer in daemon.exchange([{**event, "job_id": job_id} for event in events]):
            if not answer.ok:
                raise APIError(answer.status, answer.error)


def _commands(job_id: str, ctx: click.Context, remote: Remote, socket: Path | None) -> str:
    """Return shell commands by which later reports find the job, and which report the end of the shell."""
    given = {
        name: value
        for option, name, value in (
            ("url", "PROGRESSD_URL", remote.url),
            ("key", "PROGRESSD_KEY", remote.key),
            ("key_file", "PROGRESSD_KEY_FILE", ctx.params["key_file"]),
            ("socket", "PROGRESSD_SOCKET", socket),
        )
        if value is not None and is_typed(ctx, option)
    }
    variables = {"PROGRESSD_JOB_ID": job_id, **given}
    exports = "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in variables.items())
    return ("unset PROGRESSD_URL\n" if socket is not None else "") + exports + SHELL


def _event(
    step_name: str,
    step: int | None,
    total: int | None,
    percent: float | None,
    completed: bool,
    failed: str | None,
    status: int | None,
    new: str | None,
) -> dict[str, Any]:
    moved = bool(step_name) or any(number is not None for number in (step, total, percent))
    ended = completed + (failed is not None) + (status is not None)
    if moved + ended + (new is not None) != 1:
        raise click.UsageError("report one of these: progress, --completed, --failed, --exit or --new")
    if percent is not None and math.isnan(percent):
        raise click.BadParameter("nan is not in the range 0<=x<=100.", param_hint="--percent")
    if new is not None:
        return {"type": "job_created", "data": {"kind": values.text(new, limits.MAX_KIND) or "job"}}
    if completed or status == 0:
        return {"type": "completed", "data": {}}
    if status == KILLED + signal.SIGINT:
        return {"type": "status_change", "data": {"new_status": "cancelled"}}
    if failed is not None or status is not None:
        sentence = _exit_sentence(status) if status is not None else values.text(failed, limits.MAX_ERROR)
        return {"type": "error", "data": {"message": sentence}}
    name = values.text(step_name, limits.MAX_STEP_NAME)
    data = {"current_step": step or 0, "total_steps": total or 0, "step_name": name}
    return {"type": "progress", "data": data if percent is None else {**data, "percent": percent}}


def _details(unit: str | None, phase: str | None, eta: float | None) -> dict[str, Any]:
    if eta is not None and math.isnan(eta):
        raise click.BadParameter("nan is not a number of seconds.", param_hint="--eta")
    given = {
        "unit": values.text(unit, limits.MAX_UNIT) if unit else None,
        "phase": None if phase is None else values.text(phase, limits.MAX_PHASE),
        "eta_seconds": eta,
    }
    return {name: value for name, value in given.items() if value is not None}


def _task_event(
    task: str,
    name: str,
    step: int | None,
    total: int | None,
    completed: bool,
    failed: str | None,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report on a task. The reason for a failure becomes the step of the job."""
    if completed and failed is not None:
        raise click.UsageError("report either --completed or --failed")
    state = "completed" if completed else "failed" if failed is not None else None
    given = {
        "id": task,
        "name": values.text(name, limits.MAX_PHASE) or None,
        "current": step,
        "total": total,
        "unit": details.get("unit"),
        "state": state,
    }
    data: dict[str, Any] = {"tasks": [{name: value for name, value in given.items() if value is not None}]}
    data.update({name: value for name, value in details.items() if name != "unit"})
    if failed:
        data["step_name"] = values.text(failed, limits.MAX_STEP_NAME)
    return {"type": "progress", "data": data}


def _exit_sentence(status: int) -> str:
    try:
        return f"killed by {signal.Signals(status - KILLED).name}"
    except ValueError:
        return f"failed with exit status {status}"
