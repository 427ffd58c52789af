"""`progressd run`: run a command as a job."""

import contextlib
import os
from pathlib import PurePath
from typing import Any

import click

from progressd.cli.options import labels as labels_given
from progressd.cli.remote import Remote, remote_options

NOT_FOUND = 127  # a shell's exit statuses
NOT_EXECUTABLE = 126


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", metavar="NAME", help="The name of the job.  [default: the command, without secrets]")
@click.option(
    "--label",
    "labels",
    metavar="NAME=VALUE",
    multiple=True,
    callback=labels_given,
    help="A label of the job, beside host and user.",
)
@click.option(
    "--progress-pattern",
    "-p",
    "pattern",
    metavar="REGEX",
    help="Finds the progress in the output, with the groups current and total, or percent, and step.",
)
@click.option(
    "--as",
    "preset",
    metavar="NAME",
    help="Reads the output as that of this program. With none, the command keeps our own streams.",
)
@click.option("--no-adapt", is_flag=True, help="Adds nothing to the command that makes it report more progress.")
@click.option("--explain", is_flag=True, help="Prints how the progress would be found, and runs nothing.")
@click.option(
    "--lease",
    type=click.FloatRange(10, 86400),
    default=60.0,
    show_default=True,
    help="Seconds without contact until the job is shown as stalled. After three times as long, it fails.",
)
@remote_options
@click.pass_context
def run(
    ctx: click.Context,
    command: tuple[str, ...],
    name: str | None,
    labels: dict[str, str],
    pattern: str | None,
    preset: str | None,
    no_adapt: bool,
    explain: bool,
    lease: float,
    remote: Remote,
) -> None:
    """Run a command, and report it as a job, with the progress that its output shows.

    The command keeps its terminal, its input and output, and its exit status. It runs even if no daemon answers.
    Cancelling the job kills it. Its environment contains PROGRESSD_JOB_ID, PROGRESSD_URL and PROGRESSD_KEY, so that it can report its progress.

    \b
    Examples:
      progressd run -- make -j4
      progressd run --name backup -- rsync -a /srv /backup
      progressd run -p '(?P<current>[0-9]+) of (?P<total>[0-9]+)' -- ./import.sh
    """
    # Nothing that imports Trio or an HTTP library may be imported before the command has been started.
    from progressd.client.endpoint import checked_url
    from progressd.client.run import plan as how
    from progressd.client.run import registration as registering
    from progressd.client.run.launch import become_reaper, launch, record_signals

    checked_url(remote.url)
    try:
        planned = how.plan_run(command, preset, pattern, adapt=not no_adapt)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--progress-pattern") from None
    if explain:
        click.echo(how.explanation(planned))
        return
    before = become_reaper()
    received = record_signals()
    job_id = registering.new_id()
    registration: dict[str, Any] = {
        "kind": registering.shortened(PurePath(command[0]).name, registering.MAX_KIND),
        "name": registering.shortened(name or registering.name_of(command), registering.MAX_NAME),
        "labels": {**registering.origin_labels(), **labels},
        "lease_seconds": lease,
    }
    environment = {**os.environ, **remote.environment, "PROGRESSD_JOB_ID": job_id, **planned.environment}
    known = registering.register_quickly(remote.url, remote.key, job_id, registration)
    started, failure = None, None
    if not received:
        try:
            started = launch(planned.command, environment, planned.progress_fd, keeps_streams=planned.keeps_streams)
        except OSError as error:
            failure = error

    import trio

    from progressd.cli.remote import error_sentence
    from progressd.client.run.output import Outputs
    from progressd.client.run.supervisor import CommandJob, event_of, failure_of

    def say(what: str | Exception) -> None:
        said = what if isinstance(what, str) else f"{error_sentence(what, remote)}; the command continues"
        with contextlib.suppress(OSError):  # stderr is broken: the command continues
            click.echo(f"progressd: {said}", err=True)

    def say_unwritten(error: OSError) -> None:
        say(f"cannot pass on what the command writes: {error.strerror}")

    job = CommandJob(lambda: remote.client(timeout=10), job_id, registration, say, received, known)
    if failure is not None:
        trio.run(job.run_nothing, failure_of(f"{command[0]} cannot be started: {failure.strerror}"))
        say(f"{command[0]}: {failure.strerror}")
        ctx.exit(NOT_FOUND if isinstance(failure, FileNotFoundError) else NOT_EXECUTABLE)
    if started is None:
        trio.run(job.run_nothing, event_of("status_change", new_status="cancelled"))
        ctx.exit(128 + received[0])
    try:
        outputs = Outputs(started, planned.detection(), say_unwritten)
        ctx.exit(trio.run(job.run, started, outputs, before))
    finally:
        if started.terminal is not None:
            started.terminal.restore()
