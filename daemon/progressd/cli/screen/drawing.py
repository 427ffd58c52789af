"""What the list and the page of one job have in common: marks, bars, states and the top and bottom lines."""

import time
from collections.abc import Sequence
from typing import Final

from msgspec import UNSET

from progressd.cli import text
from progressd.cli.screen.cells import Line, Span, clip, fit, line_width, shorten
from progressd.cli.screen.rows import Row
from progressd.core.messages import JobStatus, TaskData

FULL, EMPTY = "━", "─"
MARKS: Final = {
    JobStatus.QUEUED: Span("○", "dim"),
    JobStatus.PROCESSING: Span("●", "cyan"),
    JobStatus.COMPLETED: Span("✓", "green"),
    JobStatus.FAILED: Span("✗", "red"),
    JobStatus.CANCELLED: Span("–", "yellow"),
}
STATES: Final = {
    JobStatus.QUEUED: Span("waiting", "dim"),
    JobStatus.PROCESSING: Span("running", "cyan"),
    JobStatus.COMPLETED: Span("done", "green"),
    JobStatus.FAILED: Span("failed", "red"),
    JobStatus.CANCELLED: Span("cancelled", "yellow"),
}
SILENT: Final = "yellow"


def mark(row: Row) -> Span:
    """Return the sign of a job's state."""
    return Span("!", f"bold {SILENT}") if row.stalled or row.slow else MARKS[row.status]


def state(row: Row) -> Span:
    """Return the word for a job's state."""
    if row.stalled:
        return Span("stalled", SILENT)
    return Span("slow", SILENT) if row.slow else STATES[row.status]


def percent(row: Row) -> int | None:
    """Return the percentage of a job; None if it is unknown."""
    if row.status is JobStatus.COMPLETED:
        return 100
    return row.data.percent if row.data.percent or row.data.total_steps else None


def bar(done: int | None, width: int, style: str) -> list[Span]:
    """Return a bar of `width` cells; `done`: None if unknown."""
    full = 0 if done is None else min(100, done) * width // 100
    return [Span(FULL * full, style), Span(EMPTY * (width - full), "dim")]


def row_bar(row: Row, width: int) -> list[Span]:
    """Return the bar of a job."""
    if row.status is JobStatus.QUEUED:
        return [Span(" " * width)]
    return bar(percent(row), width, SILENT if row.stalled or row.slow else MARKS[row.status].style)


def percentage(done: int | None) -> str:
    """Return a percentage as text; "" if it is unknown."""
    return "" if done is None else f"{done}%"


def task_state(task: TaskData) -> Span:
    """Return the progress of a task as text."""
    known = STATES[task.state]
    return Span(text.task_detail(task), "" if task.state is JobStatus.PROCESSING else known.style)


def silence(row: Row, now: float) -> str:
    """Return for how long a job has been stalled."""
    return f"stalled for {text.seconds(max(0.0, now - row.stalled_since))}" if row.stalled_since else "stalled"


def details(row: Row, now: float) -> Span:
    """Return the step of a running job, the error of a failed one, or how long a job took."""
    if row.status.finished:
        return Span(row.outcome, "red" if row.status is JobStatus.FAILED else "dim")
    if row.status is JobStatus.QUEUED:
        return Span("")
    step = "  ".join(filter(None, [text.steps(row.data), text.where(row.data)]))
    if row.stalled:
        return Span("  ".join(filter(None, [silence(row, now), step])), SILENT)
    return Span("  ".join(filter(None, ["slower than usual" if row.slow else "", step])), "dim")


def rate(row: Row) -> str:
    """Return the rate of a running job."""
    return text.rate(row.data.rate, row.data.unit) if row.status is JobStatus.PROCESSING else ""


def source(row: Row) -> str:
    """Return where the remaining time comes from."""
    eta = row.data.eta
    if eta is UNSET:
        return ""
    runs = f"{eta.runs} earlier {'run' if eta.runs == 1 else 'runs'}" if eta.runs else "earlier runs"
    return {"history": f"as {runs} took", "rate": "at its speed", "producer": "as the program says"}[eta.source]


def banner(lost_since: float | None, title: Line, right: str, width: int) -> list[Span]:
    """Return the top line: the title, or since when the connection is lost."""
    if lost_since is not None:
        since = time.strftime("%H:%M", time.localtime(lost_since))
        warning = f" No connection since {since}. What you see is from then."
        if width < len(warning):
            warning = f" No connection since {since}."
        return [Span(fit(warning, width), f"reverse {SILENT}")]
    left = clip(title, width)
    room = width - line_width(left) - 2
    return [*left, Span("  " + fit(right, room, right=True), "dim")] if room > 0 else left


def hints(keys: Sequence[tuple[str, str]], width: int) -> list[Span]:
    """Return as many keys with their meanings as fit whole."""
    line, used = list[Span](), 0
    for key, meaning in keys:
        needed = len(key) + len(meaning) + 1 + (2 if line else 0)
        if used + needed > width:
            break
        line += [Span("  " if line else ""), Span(key, "bold"), Span(f" {meaning}", "dim")]
        used += needed
    return line


def help_line(key: str, meaning: str, width: int) -> list[Span]:
    """Return a key with its meaning, for the list of all keys."""
    return clip([Span(f"  {key:<22}", "bold"), Span(meaning)], width)


def message(sentence: str, width: int) -> list[Span]:
    """Return a notice for the bottom line."""
    return [Span(shorten(sentence, width), SILENT)]
