"""The list of jobs on the whole terminal: tabs, columns, the selected job, search, and questions before actions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.cells import cell_len

from progressd.cli import text
from progressd.cli.language import later, t
from progressd.cli.screen import drawing
from progressd.cli.screen.cells import Painter, Span, clip, fit, line_width, shorten
from progressd.cli.screen.columns import Column, layout
from progressd.cli.screen.keys import BACKSPACE, ENTER, ESCAPE
from progressd.cli.screen.rows import Row, Rows, Tab
from progressd.core.messages import JobStatus

HEAD: Final = 3  # lines above the jobs: title, tabs, column titles
FOOT: Final = 1
TITLES: Final = {
    "mark": "",
    "name": later("NAME"),
    "bar": "",
    "percent": later("DONE"),
    "left": later("LEFT"),
    "rate": later("RATE"),
    "step": later("STEP"),
    "host": later("HOST"),
    "id": later("JOB"),
}
HINTS: Final = (
    ("q", later("quit")),
    ("?", later("keys")),
    ("Enter", later("open")),
    ("/", later("search")),
    ("c", later("cancel")),
    ("r", later("retry")),
    ("Tab", later("list")),
    ("↑↓", later("select")),
)
HELP: Final = (
    ("↑ ↓  k j", later("select a job")),
    ("PgUp PgDn  Home End", later("scroll")),
    ("Enter", later("open the job: steps, tasks and log")),
    ("← →  Tab", later("previous and next list")),
    ("1 … 5", later("running, waiting, needs a look, finished, all")),
    ("/", later("search names, kinds, labels, hosts, errors and beginnings of ids")),
    ("Esc", later("end the search")),
    ("c", later("cancel the job, after a question")),
    ("r", later("retry the failed or cancelled job")),
    ("Ctrl-L", later("draw the screen again")),
    ("?", later("show or hide these keys")),
    ("q", later("quit")),
)
SHORT_TITLES: Final = {Tab.ATTENTION: later("Look")}
EMPTY: Final = {
    Tab.RUNNING: later("no job is running"),
    Tab.WAITING: later("no job is waiting"),
    Tab.ATTENTION: later("no job needs a look"),
    Tab.FINISHED: later("no job has finished"),
    Tab.ALL: later("waiting for jobs"),
}


@dataclass(frozen=True)
class Actions:
    """What the list asks of the program around it."""

    quit: Callable[[], None]
    open: Callable[[Row], None]
    cancel: Callable[[Row], None]
    retry: Callable[[Row], None]
    search: Callable[[str], None]  # the user has typed a search
    more: Callable[[], None]  # the end of the list is on the screen


class ListView:
    """The list. `notice`: a sentence for the bottom line, until the next key."""

    def __init__(self, rows: Rows, painter: Painter, title: str, actions: Actions) -> None:
        self._rows = rows
        self._painter = painter
        self._title = title
        self._actions = actions
        self._selected = ""  # job id; "" while the first job is selected, whichever that is
        self._index = 0
        self._top = 0
        self._height = 1  # jobs on the screen
        self._search: str | None = None  # the text while the user types it
        self._before = ""  # the search that Escape restores
        self._question: Row | None = None  # the job to cancel, while the user is asked
        self._help = False
        self.notice = ""

    def visible(self) -> Sequence[Row]:
        """Return the jobs on the screen."""
        return self._rows.shown[self._top : self._top + self._height]

    def lines(self, width: int, height: int) -> list[str]:
        """Return the lines of the screen."""
        self._height = max(1, height - HEAD - FOOT)
        self._follow_selection()
        paint = self._painter.paint
        lines = [paint(self._banner(width)), paint(self._tabs(width))]
        if self._help:
            lines += [paint(drawing.help_line(key, meaning, width)) for key, meaning in HELP]
        else:
            lines += self._jobs(width)
        lines = lines[: max(0, height - FOOT)]
        lines += [""] * (height - FOOT - len(lines))
        return [*lines, paint(self._foot(width))][:height]

    def key(self, key: str) -> None:
        """Act on a key."""
        self.notice = ""
        if self._search is not None:
            self._search_key(key)
        elif self._question is not None:
            question, self._question = self._question, None
            if key in ("y", "Y"):
                self._actions.cancel(question)
        elif self._help and key in (ESCAPE, "?", "q"):
            self._help = False
        elif key in self._commands:
            self._commands[key](self)
        elif key in _TAB_KEYS:
            self._show_tab(_TAB_KEYS[key])

    def _jobs(self, width: int) -> list[str]:
        shown, base = self._rows.shown, "dim" if self._rows.lost_since is not None else ""
        columns = layout(width, max(self._rows.longest_name, cell_len(t(TITLES["name"]))), self._rows.optional_columns)
        head = [Span(fit(t(TITLES[column.name]), column.width).rstrip()) for column in columns]
        placed = list[Span]()
        for column, title in zip(columns, head, strict=True):
            placed += [Span(" " * (column.start - line_width(placed))), title]
        lines = [self._painter.paint(placed, "dim")]
        if not shown:
            empty = t("no job matches") if self._rows.wanted.search else t(EMPTY[self._rows.tab])
            lines += ["", self._painter.paint([Span(shorten(f"  {empty}", width), "dim")])]
        if self._top + 2 * self._height > len(shown) and self._rows.unloaded:
            self._actions.more()
        now = self._rows.time()
        for number in range(self._top, min(self._top + self._height, len(shown))):
            lines.append(self._job(shown[number], columns, width, base, now, selected=number == self._index))
        return lines

    def _job(self, row: Row, columns: Sequence[Column], width: int, base: str, now: float, *, selected: bool) -> str:
        """Return the line of a job. Columns are placed absolutely: terminals disagree on the width of some names."""
        style = f"{base} reverse" if selected else base
        parts = [self._painter.paint([Span(" " * width)], style) + "\r"] if selected else []
        for column in columns:
            cell = self._cell(row, column, now)
            if selected:
                cell = [Span(span.text) for span in cell]  # colours would be backgrounds
            parts.append(f"\x1b[{column.start + 1}G" + self._painter.paint(cell, style))
        return "".join(parts)

    def _cell(self, row: Row, column: Column, now: float) -> Sequence[Span]:
        width = column.width
        match column.name:
            case "mark":
                return [drawing.mark(row)]
            case "name":
                return [Span(fit(row.name, width), drawing.SILENT if row.stalled else "")]
            case "bar":
                return drawing.row_bar(row, width)
            case "percent":
                return [Span(fit(drawing.percentage(drawing.percent(row)), width, right=True))]
            case "left":
                return [self._left(row, width)]
            case "rate":
                return [Span(fit(drawing.rate(row), width))]
            case "step":
                details = drawing.details(row, now)
                return [Span(fit(details.text, width), details.style)]
            case "host":
                return [Span(fit(text.printable(row.labels.get("host", "")), width), "dim")]
        return [Span(fit(text.short(row.id), width), "dim")]

    def _left(self, row: Row, width: int) -> Span:
        """Return the remaining time of a running job, otherwise its state."""
        if row.status is not JobStatus.PROCESSING or row.stalled:
            state = drawing.state(row)
            return Span(fit(state.text, width), state.style)
        return Span(fit(text.time_left(row.data, self._rows.age(row), brief=True), width))

    def _banner(self, width: int) -> list[Span]:
        given = self._rows.wanted
        shown = [
            t("status {names}", names=",".join(map(text.status, sorted(given.statuses)))) if given.statuses else "",
            t("kind {name}", name=given.kind) if given.kind else "",
            t("host {name}", name=given.host) if given.host else "",
            *(f"{name}={value}" for name, value in given.labels.items()),
            f"/{given.search}" if given.search else "",
        ]
        right = text.printable("  ".join(filter(None, shown)))
        return drawing.banner(
            self._rows.lost_since, [Span("progressd", "bold"), Span(f"  {self._title}", "dim")], right, width
        )

    def _tabs(self, width: int) -> list[Span]:
        """Return the tabs with their numbers, or the current one if there is no room."""
        for names in (dict[Tab, str](), SHORT_TITLES):
            line = list[Span]()
            for tab, count in self._rows.counts.items():
                style = "reverse bold" if tab is self._rows.tab else "yellow" if tab is Tab.ATTENTION and count else ""
                line.append(Span(f" {t(names.get(tab, tab))} {count} ", style))
            if line_width(line) <= width:
                return line
        tab = self._rows.tab
        line = [Span("‹", "dim"), Span(f" {t(tab)} {self._rows.counts[tab]} ", "reverse bold"), Span("›", "dim")]
        if (attention := self._rows.counts[Tab.ATTENTION]) and tab is not Tab.ATTENTION:
            line.append(Span(f"  ! {attention}", drawing.SILENT))
        return clip(line, width)

    def _foot(self, width: int) -> list[Span]:
        if self._search is not None:
            typed = f"/{self._search}"
            while line_width([Span(typed)]) > width - 1:
                typed = typed[1:]
            return [Span(typed), Span(" ", "reverse")]
        if self._question is not None:
            return drawing.question(self._question.name, width)
        if self.notice:
            return drawing.message(self.notice, width)
        return drawing.hints(HINTS, width)

    def _follow_selection(self) -> None:
        """Keep the selected job, or else its place, and scroll so that it is on the screen."""
        shown = self._rows.shown
        if self._selected and not (self._index < len(shown) and shown[self._index].id == self._selected):
            found = next((number for number, row in enumerate(shown) if row.id == self._selected), None)
            if found is not None:
                self._top += found - self._index
                self._index = found
        self._select(self._index, chosen=bool(self._selected))

    def _select(self, index: int, *, chosen: bool = True) -> None:
        shown = self._rows.shown
        self._index = max(0, min(index, len(shown) - 1))
        self._selected = shown[self._index].id if shown and chosen and self._index else ""
        self._top = max(min(self._top, self._index), self._index - self._height + 1)
        self._top = max(0, min(self._top, len(shown) - self._height))

    def _current(self) -> Row | None:
        shown = self._rows.shown
        return shown[self._index] if self._index < len(shown) else None

    def _open(self) -> None:
        if (row := self._current()) is not None:
            self._selected = row.id
            self._actions.open(row)

    def _ask(self) -> None:
        if (row := self._current()) is not None:
            if row.status.finished:
                self.notice = t("{name} has already ended", name=row.name)
            else:
                self._question = row

    def _retry(self) -> None:
        if (row := self._current()) is not None:
            if row.status in (JobStatus.FAILED, JobStatus.CANCELLED):
                self._actions.retry(row)
            else:
                self.notice = t("only failed and cancelled jobs can be retried")

    def _show_tab(self, tab: Tab) -> None:
        self._rows.tab = tab
        self._selected, self._index, self._top = "", 0, 0

    def _move_tab(self, step: int) -> None:
        tabs = list(Tab)
        self._show_tab(tabs[(tabs.index(self._rows.tab) + step) % len(tabs)])

    def _begin_search(self) -> None:
        self._search = self._before = self._rows.wanted.search

    def _end_search(self) -> None:
        self._filter_by("")

    def _search_key(self, key: str) -> None:
        assert self._search is not None
        if key == ENTER:
            self._actions.search(self._search)
            self._search = None
        elif key == ESCAPE:
            self._search = None
            self._filter_by(self._before)
        else:
            if key == BACKSPACE:
                self._search = self._search[:-1]
            elif key == "clear":
                self._search = ""
            elif len(key) == 1:
                self._search += key
            self._filter_by(self._search)

    def _filter_by(self, search: str) -> None:
        if search != self._rows.wanted.search:
            self._rows.wanted = replace(self._rows.wanted, search=search)
            self._selected, self._index, self._top = "", 0, 0

    def _toggle_help(self) -> None:
        self._help = not self._help

    _commands: Mapping[str, Callable[["ListView"], None]] = {
        "up": lambda self: self._select(self._index - 1),
        "down": lambda self: self._select(self._index + 1),
        "k": lambda self: self._select(self._index - 1),
        "j": lambda self: self._select(self._index + 1),
        "pageup": lambda self: self._select(self._index - self._height),
        "pagedown": lambda self: self._select(self._index + self._height),
        " ": lambda self: self._select(self._index + self._height),
        "home": lambda self: self._select(0),
        "end": lambda self: self._select(len(self._rows.shown)),
        "g": lambda self: self._select(0),
        "G": lambda self: self._select(len(self._rows.shown)),
        "left": lambda self: self._move_tab(-1),
        "right": lambda self: self._move_tab(1),
        "backtab": lambda self: self._move_tab(-1),
        "tab": lambda self: self._move_tab(1),
        ENTER: _open,
        ESCAPE: _end_search,
        "/": _begin_search,
        "c": _ask,
        "r": _retry,
        "?": _toggle_help,
        "q": lambda self: self._actions.quit(),
    }


_TAB_KEYS: Final = {str(number): tab for number, tab in enumerate(Tab, 1)}
