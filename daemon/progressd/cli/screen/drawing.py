"""What the list and the page of one job have in common: marks, bars, states and the top and bottom lines."""

import time
from collections.abc import Sequence
from typing import Final

from msgspec import UNSET
from rich.cells import cell_len

from progressd.cli import text
from progressd.cli.language import later, t
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
    JobStatus.QUEUED: Span(later("waiting"), "dim"),
    JobStatus.PROCESSING: Span(later("running"), "cyan"),
    JobStatus.COMPLETED: Span(later("done"), "green"),
    JobStatus.FAILED: Span(later("failed"), "red"),
    JobStatus.CANCELLED: Span(later("cancelled"), "yellow"),
}
SILENT: Final = "yellow"


def mark(row: Row) -> Span:
    """Return the sign of a job's state."""
    return Span("!", f"bold {SILENT}") if row.stalled or row.slow else MARKS[row.status]


def state(row: Row) -> Span:
    """Return the word for a job's state."""
    if row.stalled:
        return Span(t("stalled"), SILENT)
    if row.slow:
        return Span(t("slow"), SILENT)
    word, style = STATES[row.status]
    return Span(t(word), style)


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
    if not row.stalled_since:
        return t("stalled")
    return t("stalled for {time}", time=text.seconds(max(0.0, now - row.stalled_since)))


def details(row: Row, now: float) -> Span:
    """Return the step of a running job, the error of a failed one, or how long a job took."""
    if row.status.finished:
        return outcome(row)
    if row.status is JobStatus.QUEUED:
        return Span("")
    step = "  ".join(filter(None, [text.steps(row.data), text.where(row.data)]))
    if row.stalled:
        return Span("  ".join(filter(None, [silence(row, now), step])), SILENT)
    return Span("  ".join(filter(None, [t("slower than usual") if row.slow else "", step])), "dim")


def outcome(row: Row) -> Span:
    """Return the error of a failed job, or how long another one took."""
    return Span(text.said(row.outcome), "red") if row.status is JobStatus.FAILED else Span(row.outcome, "dim")


def rate(row: Row) -> str:
    """Return the rate of a running job."""
    return text.rate(row.data.rate, row.data.unit) if row.status is JobStatus.PROCESSING else ""


def source(row: Row) -> str:
    """Return where the remaining time comes from."""
    eta = row.data.eta
    if eta is UNSET:
        return ""
    if eta.source == "history":
        if not eta.runs:
            return t("as earlier runs took")
        return t("as {n} earlier run took | as {n} earlier runs took", n=eta.runs)
    return t("at its speed") if eta.source == "rate" else t("as the program says")


def banner(lost_since: float | None, title: Line, right: str, width: int) -> list[Span]:
    """Return the top line: the title, or since when the connection is lost."""
    if lost_since is not None:
        since = time.strftime("%H:%M", time.localtime(lost_since))
        warning = t(" No connection since {time}. What you see is from then.", time=since)
        if width < cell_len(warning):
            warning = t(" No connection since {time}.", time=since)
        return [Span(fit(warning, width), f"reverse {SILENT}")]
    left = clip(title, width)
    room = width - line_width(left) - 2
    return [*left, Span("  " + fit(right, room, right=True), "dim")] if room > 0 else left


def hints(keys: Sequence[tuple[str, str]], width: int) -> list[Span]:
    """Return as many keys with their meanings as fit whole."""
    line, used = list[Span](), 0
    for key, meaning in keys:
        meaning = t(meaning)
        needed = cell_len(key) + cell_len(meaning) + 1 + (2 if line else 0)
        if used + needed > width:
            break
        line += [Span("  " if line else ""), Span(key, "bold"), Span(f" {meaning}", "dim")]
        used += needed
    return line


def help_line(key: str, meaning: str, width: int) -> list[Span]:
    """Return a key with its meaning, for the list of all keys."""
    return clip([Span(f"  {key:<22}", "bold"), Span(t(meaning))], width)


def question(name: str, width: int) -> list[Span]:
    """Return the question whether to cancel a job, in the bottom line."""
    room = width - cell_len(t("Cancel {name}? (y/n)", name=""))
    return clip([Span(t("Cancel {name}? (y/n)", name=shorten(name, max(1, room))), "bold yellow")], width)


def message(sentence: str, width: int) -> list[Span]:
    """Return a notice for the bottom line."""
    return [Span(shorten(sentence, width), SILENT)]
