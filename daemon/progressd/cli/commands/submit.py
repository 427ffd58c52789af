"""`progressd submit`: submit files to the daemon."""

from pathlib import Path

import click

from progressd.cli.language import t
from progressd.cli.options import labels_option
from progressd.cli.remote import Remote, remote_options
from progressd.client.values import encodable
from progressd.core.events import Priority


def _assignments(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, object]:
    """Parse NAME=VALUE, where the value is JSON if it can be decoded, otherwise text."""
    import msgspec

    options: dict[str, object] = {}
    for assignment in given:
        name, equals, text = encodable(assignment).partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{assignment!r} is not of the form NAME=VALUE, such as dpi=300")
        try:
            options[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            options[name] = text
    return options


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)
)
@click.option(
    "--option",
    "-o",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_assignments,
    help="An option of the pipeline; repeatable.",
)
@click.option("--pipeline", metavar="NAME", help="The pipeline to run.  [default: pdf]")
@labels_option("A label for the jobs; repeatable.")
@click.option(
    "--priority",
    type=click.Choice([str(priority) for priority in Priority]),
    help="Jobs with a higher priority start first.",
)
@click.option("--watch", "-w", is_flag=True, help="Watch the jobs until all have finished.")
@remote_options
@click.pass_context
def submit(
    ctx: click.Context,
    files: tuple[Path, ...],
    options: dict[str, object],
    pipeline: str | None,
    labels: dict[str, str],
    priority: str | None,
    watch: bool,
    remote: Remote,
) -> None:
    """Submit files to the daemon and print the id of each job.

    The exit status is 1 if the daemon rejects a file. With --watch, it is also 1 if a job fails or is cancelled.

    \b
    Examples:
      progressd submit book.pdf
      progressd submit scans/*.pdf --option dpi=600 --option ocr=true --watch
      progressd submit urgent.pdf --priority high --label team=scan
    """
    from progressd.cli.remote import error_sentence
    from progressd.client.errors import APIError

    if priority is not None:
        options["priority"] = priority
    names: dict[str, str] = {}
    rejected = False
    with remote.client() as client:
        for path in files:
            try:
                job_id = client.submit(path, options, pipeline, labels)
            except (APIError, OSError) as error:
                if isinstance(error, APIError) and error.status == 401:
                    raise  # the other files would fail the same way
                rejected = True
                click.echo(t("Error: {message}", message=f"{path}: {error_sentence(error, remote)}"), err=True)
            else:
                names[job_id] = path.name
                click.echo(job_id)
    status = 0
    if watch and names:
        from progressd.cli.follow import follow

        status = follow(remote, list(names), names)
    ctx.exit(status or int(rejected))
