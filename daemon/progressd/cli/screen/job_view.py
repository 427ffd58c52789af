"""One job on the whole terminal: its state, progress, tasks, steps and live log."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from msgspec import UNSET
from rich.cells import cell_len

from progressd.cli import text
from progressd.cli.language import later, t
from progressd.cli.screen import drawing
from progressd.cli.screen.cells import Line, Painter, Span, clip, fit, joined, shorten
from progressd.cli.screen.keys import BACKSPACE, ESCAPE
from progressd.cli.screen.rows import Row, Rows
from progressd.core.messages import JobLogData, JobStatus, ProgressData

MAX_LINES: Final = 10_000  # of the log in memory
NO_OUTPUT: Final = later("no output yet")
TASK_BAR: Final = 16
PERCENT: Final = 5  # cells
SHARE: Final = 5  # tasks and steps each get at most this part of the screen
HINTS: Final = (
    ("q", later("quit")),
    ("?", later("keys")),
    ("Esc", later("back")),
    ("c", later("cancel")),
    ("r", later("retry")),
    ("↑↓", later("scroll")),
    ("End", later("follow")),
)
HELP: Final = (
    ("Esc  ←", later("back to the list")),
    ("↑ ↓  k j", later("scroll the log by a line")),
    ("PgUp PgDn", later("scroll the log by a screen")),
    ("Home  g", later("the beginning of the log")),
    ("End  G", later("follow the log")),
    ("c", later("cancel the job, after a question")),
    ("r", later("retry the failed or cancelled job")),
    ("Ctrl-L", later("draw the screen again")),
    ("?", later("show or hide these keys")),
    ("q", later("quit")),
)


TIMES: Final = {
    "created_at": later("created {time}"),
    "started_at": later("started {time}"),
    "completed_at": later("ended {time}"),
}


@dataclass(frozen=True)
class Actions:
    """What the page of a job asks of the program around it."""

    quit: Callable[[], None]
    close: Callable[[], None]
    cancel: Callable[[Row], None]
    retry: Callable[[Row], None]


class JobView:
    """The page of one job. `details`: the job in the REST API, or None until it is known."""

    def __init__(self, row: Row, rows: Rows, painter: Painter, url: str, actions: Actions) -> None:
        self.row = row
        self.details: Mapping[str, Any] | None = None
        self.notice = ""
        self._rows = rows
        self._painter = painter
        self._url = url
        self._actions = actions
        self._asked = False  # whether to cancel
        self._help = False
        self._log = deque[tuple[str, bool]](maxlen=MAX_LINES)  # the text of a line, and whether it is a remark
        self._partial = False  # the rest of the last line follows
        self._log_note = NO_OUTPUT
        self._above = 0  # lines of the log below the screen; 0: follow
        self._log_height = 1

    def add_log(self, data: JobLogData) -> None:
        """Add lines to the log."""
        if data.missed:
            self._add(t("{n} bytes of the log are missing here", n=data.missed), remark=True)
            self._partial = False
        for line in data.lines:
            if self._partial and line.s != "n":
                last, _ = self._log.pop()
                self._log.append((last + line.text, False))
            else:
                self._add(line.text, remark=line.s == "n")
            self._partial = line.partial

    def no_log(self, reason: str) -> None:
        """Say why there is no log."""
        self._log_note = reason

    def visible(self) -> Sequence[Row]:
        """Return the jobs on the screen."""
        return [self.row]

    def lines(self, width: int, height: int) -> list[str]:
        """Return the lines of the screen."""
        paint = self._painter.paint
        title = [drawing.mark(self.row), Span(" "), Span(self.row.name, "bold")]
        lines = [paint(drawing.banner(self._rows.lost_since, title, "", width))]
        base = "dim" if self._rows.lost_since is not None else ""
        if base:
            lines.append(paint(clip(title, width), base))
        if self._help:
            lines += [paint(drawing.help_line(key, meaning, width)) for key, meaning in HELP]
        else:
            lines += self._describe(width, height - len(lines), max(1, height // SHARE), base)
        lines = lines[: height - 1]
        lines += [""] * (height - 1 - len(lines))
        return [*lines, paint(self._foot(width))][:height]

    def _describe(self, width: int, room: int, share: int, base: str) -> list[str]:
        """Return what is between the top and the bottom line. `room`: lines, with the bottom line."""
        paint = self._painter.paint
        body: list[Line] = [*self._head(width), *self._tasks(width, share), *self._steps(share)]
        lines = [paint(clip(line, width), base) for line in body][: max(0, room - 3)]
        lines += [paint(clip([Span(t("Log"), "bold"), Span(self._log_state(), "dim")], width))]
        self._log_height = max(1, room - 1 - len(lines))
        return lines + self._log_lines(width)

    def key(self, key: str) -> None:
        """Act on a key."""
        self.notice = ""
        if self._asked:
            self._asked = False
            if key in ("y", "Y"):
                self._actions.cancel(self.row)
        elif key == "?" or (self._help and key in (ESCAPE, "q")):
            self._help = not self._help
        elif key in (ESCAPE, BACKSPACE, "left"):
            self._actions.close()
        elif key == "q":
            self._actions.quit()
        elif key == "c":
            self._ask()
        elif key == "r":
            self._actions.retry(self.row)
        elif key in _SCROLLING:
            step = _SCROLLING[key]
            step = step * self._log_height if key.startswith("page") else step
            self._above = max(0, min(self._above + step, len(self._log) - self._log_height))

    def _ask(self) -> None:
        if self.row.status.finished:
            self.notice = t("{name} has already ended", name=self.row.name)
        else:
            self._asked = True

    def _add(self, line: str, *, remark: bool = False) -> None:
        self._log.append((line, remark))
        if self._above:
            self._above = min(self._above + 1, len(self._log))

    def _head(self, width: int) -> list[Line]:
        row, data = self.row, self.row.data
        done = drawing.percent(row)
        color = drawing.SILENT if row.stalled or row.slow else drawing.MARKS[row.status].style
        running = row.status is JobStatus.PROCESSING
        left = text.time_left(data, self._rows.age(row)) if running and not row.stalled else ""
        lines: list[Line] = [
            [*drawing.bar(done, max(1, width - PERCENT), color), Span(f"{drawing.percentage(done):>{PERCENT}}")],
            joined(
                [
                    [drawing.state(row)],
                    [Span(drawing.silence(row, self._rows.time()) if row.stalled else "", drawing.SILENT)],
                    [Span(self._elapsed())],
                    [Span(" ".join(filter(None, [left, f"({drawing.source(row)})" if left else ""])))],
                    [Span(text.steps(data))],
                    [Span(drawing.rate(row))],
                    [drawing.outcome(row)] if row.status is JobStatus.COMPLETED else [],
                ]
            ),
        ]
        if running and (where := text.where(data)):
            lines.append([Span(where)])
        if row.status is JobStatus.FAILED:
            lines.append([drawing.outcome(row)])
        labels = [f"{name}={value}" for name, value in row.labels.items()]
        lines.append([Span(text.printable("  ".join([row.kind, row.id, *labels])), "dim")])
        if self.details is not None:
            lines.append([Span("  ".join(self._times(self.details)), "dim")])
            if path := self.details.get("output_path"):
                lines.append([Span(t("result") + " ", "dim"), Span(text.result_url(path, self._url))])
        return lines

    def _elapsed(self) -> str:
        """Return for how long a running job has been running; "" until its start is known."""
        if self.row.status is not JobStatus.PROCESSING or "started_at" not in (details := self.details or {}):
            return ""
        started = datetime.fromisoformat(details["started_at"]).timestamp()
        return t("{time} elapsed", time=text.stopwatch(self._rows.time() - started))

    def _times(self, job: Mapping[str, Any]) -> list[str]:
        found = [t(form, time=text.short_time(job[name])) for name, form in TIMES.items() if name in job]
        if job.get("attempt", 1) > 1:
            found.append(t("attempt {n}", n=job["attempt"]))
        if "queue_position" in job:
            found.append(text.outcome(dict(job)))
        return found

    def _tasks(self, width: int, most: int) -> list[Line]:
        tasks = sorted(self.row.data.tasks, key=lambda task: task.state.finished)
        if not tasks:
            return []
        names = min(max(cell_len(text.printable(task.name)) for task in tasks), max(10, width - TASK_BAR - 30))
        lines: list[Line] = [[Span(t("Tasks"), "bold")]]
        for task in tasks[:most]:
            done = text.task_percent(task)
            lines.append(
                [
                    Span(f"  {fit(text.printable(task.name), names)}  "),
                    *drawing.bar(done, TASK_BAR, drawing.MARKS[task.state].style),
                    Span(f"{drawing.percentage(done):>5}  "),
                    drawing.task_state(task),
                ]
            )
        return [*lines, *_more(len(tasks) - most)]

    def _steps(self, most: int) -> list[Line]:
        steps = (self.details or {}).get("steps", [])
        lines: list[Line] = [[Span(t("Steps"), "bold")]] if steps else []
        lines += _more(len(steps) - most)
        for step in steps[-most:]:
            name = text.phase_and_step(step.get("phase", ""), step["step_name"])
            lasted = ""
            if "ended_at" in step:
                begin, end = (datetime.fromisoformat(step[key]) for key in ("started_at", "ended_at"))
                lasted = text.seconds(max(0.0, (end - begin).total_seconds()))
            rate = text.rate(step.get("rate", UNSET), step.get("unit", UNSET))
            time = text.short_time(step["started_at"])
            lines.append(
                [Span(f"  {time}  ", "dim"), Span(_padded(lasted, 16)), Span(_padded(rate, 12)), Span(f"  {name}")]
            )
        return lines

    def _log_state(self) -> str:
        if not self._log:
            return f"  {t(self._log_note)}"
        if not self._above:
            return ""
        return "  " + t("{n} line below; End follows | {n} lines below; End follows", n=self._above)

    def _log_lines(self, width: int) -> list[str]:
        end = len(self._log) - self._above
        begin = max(0, end - self._log_height)
        shown = []
        for number in range(begin, end):
            line, remark = self._log[number]
            if remark:
                shown.append(self._painter.paint([Span(shorten(f"[{text.printable(line)}]", width), "dim")]))
            else:
                shown.append(self._painter.log_line(line, width))
        return shown

    def _foot(self, width: int) -> list[Span]:
        if self._asked:
            return drawing.question(self.row.name, width)
        if self.notice:
            return drawing.message(self.notice, width)
        return drawing.hints(HINTS, width)


def moved(before: ProgressData, after: ProgressData) -> bool:
    """Return whether a new step has begun."""
    return (before.step_name, before.phase) != (after.step_name, after.phase)


def _more(hidden: int) -> list[Line]:
    return [[Span("  " + t("… and {n} more", n=hidden), "dim")]] if hidden > 0 else []


def _padded(shown: str, width: int) -> str:
    """Return text in at least `width` cells."""
    return shown + " " * (width - cell_len(shown))


_SCROLLING: Final = {
    "up": 1,
    "k": 1,
    "down": -1,
    "j": -1,
    "pageup": 1,
    "pagedown": -1,
    "home": MAX_LINES,
    "end": -MAX_LINES,
    "g": MAX_LINES,
    "G": -MAX_LINES,
}
