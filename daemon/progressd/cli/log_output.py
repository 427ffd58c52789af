"""Print the log of a job, and follow it."""

import sys
from collections.abc import Mapping
from urllib.parse import urlencode

from progressd.cli.remote import Remote


def print_log(
    remote: Remote, job_id: str, query: Mapping[str, str], *, follow: bool, times: bool, colours: bool
) -> int:
    """Print a log. Return the exit status. Raises ClientError."""
    if follow:
        return _follow(remote, job_id, query, times=times, colours=colours)
    given = {**query, **({"times": "true"} if times else {}), **({"ansi": "true"} if colours else {})}
    with remote.client() as client:
        sys.stdout.buffer.write(client.log(job_id, f"?{urlencode(given)}" if given else ""))
        sys.stdout.buffer.flush()
    return 0


def _follow(remote: Remote, job_id: str, query: Mapping[str, str], *, times: bool, colours: bool) -> int:
    """Print a log until the job has finished."""
    import trio

    from progressd.cli.follow import until_interrupted
    from progressd.client.watcher import Disconnected, watch_log
    from progressd.core.log_text import LogText

    text = LogText(ansi=colours, times=times)

    def lost(disconnected: Disconnected) -> None:
        if not disconnected.failures:
            print(f"connection lost ({disconnected.reason}), reconnecting", file=sys.stderr)

    async def run() -> int:
        async with watch_log(remote.url, job_id, query, key=remote.key, on_lost=lost) as messages:
            async for message in messages:
                data = message.data
                shown = [text.gap(data.missed)] if data.missed else []
                for line in data.lines:
                    if line.s == "n":
                        shown.append(text.note(line.text))
                    else:
                        shown.append(text.lines(line.t, line.text.encode() + b"\n" * (not line.partial)))
                sys.stdout.buffer.write(b"".join(shown))
                sys.stdout.buffer.flush()
        return 0

    return trio.run(until_interrupted, run)
