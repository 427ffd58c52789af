"""`progressd jobs`: what the daemon has done, does and will do."""

import sys
from typing import Any, Final

import click

from progressd.cli.parameters import url_option
from progressd.core.status import JobStatus

COLUMNS: Final = ("JOB", "STATUS", "DONE", "CREATED", "NAME")

SPACING: Final = 3  # characters between columns
LEAST_NAME: Final = 12  # characters


@click.command()
@click.option("--status", type=click.Choice([str(status) for status in JobStatus]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many jobs at most.")
@click.option("--json", "as_json", is_flag=True, help="Print each job as one line of JSON.")
@url_option
def jobs(status: str | None, limit: int, as_json: bool, url: str) -> None:
    """List jobs, the newest first.

    \b
    Examples:
      progressd jobs
      progressd jobs --status failed --limit 10
      progressd jobs --json | jq -r .input_filename
    """
    import msgspec

    from progressd.client.rest import RestClient

    with RestClient(url) as client:
        found = client.jobs(limit=limit, status=status)
    if as_json:
        for job in found:
            click.echo(msgspec.json.encode(job))
    elif not found and sys.stdout.isatty():
        click.echo("no jobs")
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        _print_columns([COLUMNS, *map(_cells, found)])


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    from progressd.cli import text

    percent = f"{job['progress']['percent']}%"
    return job["id"], job["status"], percent, text.local_time(job["created_at"]), text.name(job)


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from progressd.cli.text import COLORS

    rows = [_cells(job) for job in found]
    console = Console()
    *fixed, _ = _widths([COLUMNS, *rows])
    room = console.width - sum(fixed) - SPACING * len(COLUMNS)
    if room < LEAST_NAME:
        _print_columns([COLUMNS, *rows])  # the ids are there to be copied: lines may break, they may not
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in COLUMNS:
        table.add_column(title, no_wrap=True, justify="right" if title == "DONE" else "left")
    for row in rows:
        cells = [Text(cell) for cell in row]
        cells[-1].truncate(room, overflow="ellipsis")  # left to itself, rich shortens every column
        cells[1].stylize(COLORS.get(JobStatus(row[1]), ""))
        table.add_row(*cells)
    console.print(table)


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = _widths(rows)
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _widths(rows: list[tuple[str, ...]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
