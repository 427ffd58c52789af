"""`progressd run`: run a command as a job."""

import contextlib
from pathlib import PurePath

import click

from progressd.cli.options import labels as labels_given
from progressd.cli.remote import Remote, remote_options


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", metavar="NAME", help="The name of the job.  [default: the command]")
@click.option(
    "--label", "labels", metavar="NAME=VALUE", multiple=True, callback=labels_given, help="A label of the job."
)
@click.option(
    "--progress-pattern",
    "-p",
    "pattern",
    metavar="REGEX",
    help="Finds the progress in the output, with the groups current and total, or percent, and step.",
)
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
    lease: float,
    remote: Remote,
) -> None:
    """Run a command, and report it as a job.

    The command keeps its input, output and exit status. It runs even if no daemon answers. Cancelling the job kills it.
    Its environment contains PROGRESSD_JOB_ID, PROGRESSD_URL and PROGRESSD_KEY, so that it can report its progress.

    \b
    Examples:
      progressd run -- make -j4
      progressd run --name backup -p '(?P<percent>[0-9]+)%' -- rsync -a --info=progress2 /srv /backup
    """
    import trio

    from progressd.cli.remote import error_sentence
    from progressd.client import values
    from progressd.client.run import CommandJob
    from progressd.core.progress_pattern import ProgressPattern

    try:
        finder = None if pattern is None else ProgressPattern(pattern)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--progress-pattern") from None
    kind = values.text(name or PurePath(command[0]).name, values.MAX_NAME)
    registration = {"kind": kind, "labels": labels, "lease_seconds": lease}

    def say(what: str | Exception) -> None:
        said = what if isinstance(what, str) else f"{error_sentence(what, remote)}; the command continues"
        with contextlib.suppress(OSError):  # stderr is broken: the command continues
            click.echo(f"progressd: {said}", err=True)

    with remote.client(timeout=10) as client:
        wrapped = CommandJob(client, registration, remote.environment, finder, say)
        try:
            ctx.exit(trio.run(wrapped.run, command))
        except OSError as error:
            say(f"{command[0]}: {error.strerror}")
            ctx.exit(127 if isinstance(error, FileNotFoundError) else 126)
