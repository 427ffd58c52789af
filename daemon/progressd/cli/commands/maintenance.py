"""`progressd backup` and `progressd check`: copy, check and repair a state directory."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import click

from progressd.cli.options import state_dir, state_dir_options

SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Raise SystemExit with a shell's exit status on signals that are not ignored, so that no partial file remains."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    handled = {number: before for number in SIGNALS if (before := signal.getsignal(number)) in defaults}
    status = list[int]()

    def leave(number: int, _frame: object) -> NoReturn:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)  # timeout(1) sends the signal twice
        status.append(128 + number)
        raise SystemExit(*status)

    for number in handled:
        signal.signal(number, leave)
    try:
        yield
    except Exception:
        if status:  # SQLite replaces an exception of its progress handler with "interrupted"
            raise SystemExit(*status) from None
        raise
    finally:
        for number, before in handled.items():
            signal.signal(number, before)


@click.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@state_dir_options
@exit_on_signals()
def backup(target: Path, config_path: Path | None, **given: Path | None) -> None:
    """Copy the database of a daemon, running or not, to FILE.

    The copy is consistent and checked, and never overwrites a file. It contains all jobs and their changes. The files
    of jobs are in the directory jobs next to the database: copy them after the database.

    \b
    Examples:
      progressd backup /backup/progressd.db
      progressd backup --state-dir /var/lib/progressd "/backup/$(date +%F).db"
    """
    from progressd.admin import maintenance

    size = maintenance.backup(state_dir(config_path, given["state_dir"]), target)
    click.echo(f"{target}: {size / 2**20:.1f} MiB", err=True)


@click.command()
@click.option("--repair", is_flag=True, help="Repair as much as possible. Stop the daemon first.")
@state_dir_options
@exit_on_signals()
def check(repair: bool, config_path: Path | None, **given: Path | None) -> None:
    """Check the database and the files of a daemon, running or not.

    It prints one line for each problem, and whether --repair can repair it. The exit status is 0 if there are no
    problems, or if all were repaired. A large database takes a while.

    --repair recovers a damaged database into a new one. This needs the program sqlite3 (sudo apt install sqlite3).
    It keeps the damaged database next to the new one, prints its path, and lists the lost data.

    \b
    Examples:
      progressd check
      progressd check --state-dir /var/lib/progressd --repair
    """
    from progressd.admin import maintenance

    directory = state_dir(config_path, given["state_dir"])
    left = 0
    if repair:
        for sentence, repaired in maintenance.repair(directory):
            click.echo(sentence)
            left += not repaired
    else:
        for problem in maintenance.check(directory):
            click.echo(f"{problem.sentence}: {problem.remedy}")
            left += 1
    if left:
        raise SystemExit(1)
    click.echo(f"{directory}: no problems found", err=True)
