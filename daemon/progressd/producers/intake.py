"""From lines to ingest and back: hands in what a producer had ready as one batch, and answers each line."""

from collections.abc import Sequence

from progressd.ingest import Ingest
from progressd.producers.lines import Answer, Line, NumberedLine, read_line


async def take_lines(ingest: Ingest, lines: Sequence[NumberedLine], job_id: str | None = None) -> list[Answer]:
    """An answer for each line, in order, once all of them are durable. Raises Unavailable while the daemon stops.

    `job_id`: the job of lines that do not name one; those that name another are refused.
    """
    read = [read_line(number, line, job_id) for number, line in lines]
    outcomes = iter(await ingest.submit(*(line.event for line in read if isinstance(line, Line))))
    return [line.answer(next(outcomes), ingest.store_id) if isinstance(line, Line) else line for line in read]
