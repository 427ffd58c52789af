"""`progressd logs`: print the log of a job."""

import sys
from collections.abc import Mapping
from urllib.parse import urlencode

import click

from progressd.cli.options import complete_job
from progressd.cli.remote import Remote, remote_options, whole_id


@click.command()
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@click.option("--follow", "-f", is_flag=True, help="Keep printing new lines until the job has finished.")
@click.option("--lines", "-n", type=click.IntRange(0), metavar="N", help="Begin with the last N lines.")
@click.option("--since", metavar="TIME", help="Begin at a time (2026-01-31T12:00), or this long ago (10m).")
@click.option("--times", "-t", is_flag=True, help="Print the time of each line.")
@remote_options
@click.pass_context
def logs(
    ctx: click.Context, job_id: str, follow: bool, lines: int | None, since: str | None, times: bool, remote: Remote
) -> None:
    """Print the log of a job: its standard output and standard error.

    Both streams are printed to standard output, with their colours if it is a terminal. If a log is long, only its
    beginning and its end are kept, and a line says how much is missing. If the connection breaks, the command
    reconnects, and no line is missing or printed twice.

    \b
    Examples:
      progressd logs 6e4d1c9e
      progressd logs -f -n 20 6e4d1c9e
      progressd logs --since 10m 6e4d1c9e | grep -i error
    """
    if lines is not None and since is not None:
        raise click.UsageError("give only one of --lines and --since")
    with remote.client() as client:
        job_id = whole_id(client, job_id)
        client.job(job_id)  # the error for an unknown job
    query = {"since": since} if since is not None else {"tail": str(lines)} if lines is not None else {}
    if follow:
        ctx.exit(_follow(remote, job_id, query, times=times))
    given = {**query, **({"times": "true"} if times else {}), **({"ansi": "true"} if sys.stdout.isatty() else {})}
    with remote.client() as client:
        _write(log := client.log(job_id, f"?{urlencode(given)}" if given else ""))
    _end_line(log)


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def _end_line(text: bytes) -> None:
    """End the last line on a terminal, so that the shell's prompt has a line of its own."""
    if text and not text.endswith(b"\n") and sys.stdout.isatty():
        _write(b"\n")


def _follow(remote: Remote, job_id: str, query: Mapping[str, str], *, times: bool) -> int:
    """Print a log until the job has finished."""
    import trio

    from progressd.cli.interruption import until_interrupted
    from progressd.cli.text import reconnecting
    from progressd.client.watcher import Disconnected, watch_log
    from progressd.core.log_text import LogText

    text = LogText(ansi=sys.stdout.isatty(), times=times)

    def lost(disconnected: Disconnected) -> None:
        if not disconnected.failures:
            print(reconnecting(disconnected.reason), file=sys.stderr)

    last = b""

    async def run() -> int:
        nonlocal last
        async with watch_log(remote.url, job_id, query, key=remote.key, on_lost=lost) as messages:
            async for message in messages:
                data = message.data
                shown = [text.gap(data.missed)] if data.missed else []
                for line in data.lines:
                    if line.s == "n":
                        shown.append(text.note(line.text))
                    else:
                        shown.append(text.lines(line.t, line.text.encode() + b"\n" * (not line.partial)))
                _write(joined := b"".join(shown))
                last = joined or last
        return 0

    try:
        return trio.run(until_interrupted, run)
    finally:
        _end_line(last)
