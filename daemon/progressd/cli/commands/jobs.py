"""`progressd jobs` and `progressd jobs export`: list jobs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from progressd.cli import text
from progressd.cli.language import english, later, t
from progressd.cli.options import selection_options, state_dir, state_dir_options
from progressd.cli.remote import Remote, remote_options
from progressd.core.messages import JobStatus, ProgressData

COLUMNS: Final = (later("JOB"), later("STATUS"), later("DONE"), later("CREATED"), later("NAME"))
MIN_WIDTHS: Final = (0, 60, 100, 100, 60)  # of the terminal, to show each column
STATUS, NAME = 1, 4  # indexes in COLUMNS


@click.group(invoke_without_command=True)
@selection_options
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="The maximum number of jobs."
)
@click.option("--json", "as_json", is_flag=True, help="Print each job as one line of JSON.")
@remote_options
@click.pass_context
def jobs(
    ctx: click.Context,
    limit: int,
    as_json: bool,
    statuses: tuple[str, ...],
    kind: str,
    labels: Mapping[str, str],
    host: str,
    search: str,
    remote: Remote,
) -> None:
    """List jobs, the newest first.

    \b
    Examples:
      progressd jobs
      progressd jobs --status failed --limit 10
      progressd jobs --host db1 --search "nightly backup"
      progressd jobs --json | jq -r .input_filename
      progressd jobs export > jobs.ndjson
    """
    if ctx.invoked_subcommand is not None:
        return
    filters = {
        "status": ",".join(statuses),
        "kind": kind,
        "label": [f"{name}={value}" for name, value in {**labels, **({"host": host} if host else {})}.items()],
        "q": search,
    }
    with remote.client() as client:
        found = client.jobs(limit=limit, **filters)
    if as_json:
        for job in found:
            click.echo(msgspec.json.encode(job))
    elif not found and sys.stdout.isatty():
        click.echo(
            t("no jobs match") if any(filters.values()) else t("no jobs yet (submit a file with progressd submit FILE)")
        )
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        with english():  # programs read it
            for line in text.columns([COLUMNS, *(_with_outcome(_cells(job), job) for job in found)]):
                click.echo(line)


@jobs.command()
@click.option(
    "--status",
    "statuses",
    type=click.Choice([str(status) for status in JobStatus]),
    multiple=True,
    help="Only jobs with this status; repeatable.",
)
@state_dir_options
def export(statuses: Sequence[str], config_path: Path | None, **given: Path | None) -> None:
    """Print every job as one line of JSON, the oldest first.

    It reads the database of a daemon, running or not, and prints all jobs in the format of progressd jobs --json. Their
    progress may be up to a second old.

    \b
    Examples:
      progressd jobs export > jobs.ndjson
      progressd jobs export --status failed --state-dir /var/lib/progressd | jq -r .error | sort | uniq -c
    """
    from progressd.admin import maintenance

    wanted = {JobStatus(status) for status in statuses} or set(JobStatus)
    encode = msgspec.json.Encoder().encode
    for job in maintenance.export(state_dir(config_path, given["state_dir"]), wanted):
        sys.stdout.buffer.write(encode(job) + b"\n")
    sys.stdout.flush()


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    status = JobStatus(job["status"])
    progress = job["progress"]
    moved = text.percent(progress["percent"], progress["total_steps"])
    done = "100%" if status is JobStatus.COMPLETED else moved or "-"
    return job["id"], text.status(status), done, text.local_time(job["created_at"]), text.name(job)


def _with_outcome(cells: tuple[str, ...], job: dict[str, Any]) -> tuple[str, ...]:
    """Append the error or the URL of the result to the name of a job, because in a pipe each job is one line."""
    *most, name = cells
    return (*most, ": ".join(filter(None, [name, text.outcome(job)])))


def _print_table(found: list[dict[str, Any]]) -> None:
    """Print a table that fits the terminal: shorten names and hide columns. Outcomes are below their jobs."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    rows: list[tuple[str, ...]] = [tuple(map(t, COLUMNS))]
    for job in found:
        *most, _, name = _cells(job)
        rows.append((*most, text.short_time(job["created_at"]), name))
    console = Console()
    *widths, _ = (max(map(cell_len, column)) for column in zip(*rows, strict=True))
    shown = [column for column, width in enumerate(MIN_WIDTHS) if console.width >= width]
    room = console.width - sum(widths[column] + len(text.GAP) for column in shown if column != NAME)
    for number, row in enumerate(rows):
        line = Text(style="bold" if number == 0 else "")
        for column in shown:
            cell = Text(row[column])
            if column == NAME:
                cell.truncate(room, overflow="ellipsis")
            else:
                if column == STATUS and number > 0:
                    cell.stylize(text.COLORS[JobStatus(found[number - 1]["status"])])
                cell.pad_right(widths[column] - cell.cell_len)
            line.append_text(cell).append(text.GAP)
        line.rstrip()
        console.print(line, soft_wrap=True)  # rich would shorten ids, which users copy
        if number:
            for below in [*_moving(found[number - 1]), *filter(None, [text.outcome(found[number - 1])])]:
                console.print(Text(f"  {below}", style="dim"), soft_wrap=True)


def _moving(job: dict[str, Any]) -> list[str]:
    """Return the rate of a running job, and a line for each of its unfinished tasks."""
    data = msgspec.convert(job["progress"], ProgressData)
    if JobStatus(job["status"]) is not JobStatus.PROCESSING:
        return []
    line = "  ".join(filter(None, [text.rate(data.rate, data.unit), data.phase or ""]))
    tasks = [
        "  ".join(filter(None, [f"  {text.printable(task.name)}", text.task_detail(task)]))
        for task in data.tasks
        if not task.state.finished
    ]
    return [*filter(None, [text.printable(line)]), *tasks]
