"""`progressd jobs`: what the daemon has done, does and will do."""

import sys
from typing import Any, Final

import click

from progressd.cli.parameters import url_option
from progressd.core.status import JobStatus

COLUMNS: Final = ("JOB", "STATUS", "DONE", "CREATED", "NAME")


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

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True, overflow="ellipsis", justify="right" if column == "DONE" else "left")
    table.columns[0].min_width = 36
    for job in found:
        cells = [Text(cell) for cell in _cells(job)]
        cells[1].stylize(COLORS.get(job["status"], ""))
        table.add_row(*cells)
    Console().print(table if found else "no jobs")


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
