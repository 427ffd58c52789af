"""The parts of the full-screen list that need no terminal: columns, keys, styled text, rows."""

import json
import re
from collections.abc import Sequence
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.cli.screen import job_view
from progressd.cli.screen.cells import Painter, Span, clip, fit, line_width, shorten
from progressd.cli.screen.columns import GAP, NAME_WIDTH, OPTIONAL, layout
from progressd.cli.screen.keys import Keys
from progressd.cli.screen.list_view import Actions, ListView
from progressd.cli.screen.rows import Filter, Row, Rows, Selection, Tab
from progressd.cli.screen.terminal import shows_progress
from progressd.core.messages import JobLogData, JobStatus, LogLine, Message, decode
from rich.cells import cell_len
from support.samples import job_id

NAMES = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("写真ｱ한é👩\u0301\u200d\u202e\t\x1b"),
    min_size=1,
    max_size=60,
)
TIME = "2026-01-01T00:00:00Z"
SGR = re.compile(r"\x1b\[[\d;]*m")
PLACED = re.compile(r"\x1b\[(\d+)G")


def message(type_: str, number: int = 1, **data: object) -> Message:
    return decode(json.dumps({"type": type_, "job_id": job_id(number), "time": TIME, "data": data}))


def created(number: int, name: str = "a.pdf", status: str = "processing", **more: object) -> Message:
    return message("job_created", number, kind="pdf", name=name, status=status, created_at=TIME, **more)


def progress(number: int, percent: int, **more: object) -> Message:
    return message("progress", number, current_step=percent, total_steps=100, step_name="x", percent=percent, **more)


def rows_of(*messages: Message, given: Filter | None = None) -> Rows:
    rows = Rows(given or Filter())
    for one in messages:
        rows.take(one)
    return rows


def view_of(rows: Rows) -> ListView:
    return ListView(rows, Painter(colors=True), "http://localhost", Actions(*[lambda *_: None] * 6))


def width_of(painted: str) -> int:
    """Return the last cell that a painted line reaches."""
    reached = cell_len(SGR.sub("", PLACED.split(painted)[0]).replace("\r", ""))
    for start, text in zip(PLACED.split(painted)[1::2], PLACED.split(painted)[2::2], strict=True):
        reached = max(reached, int(start) - 1 + cell_len(SGR.sub("", text)))
    return reached


@given(st.integers(1, 400), st.integers(0, 200), st.sets(st.sampled_from(sorted(OPTIONAL))))
def test_columns_fit_and_the_name_stays(width: int, longest: int, optional: set[str]) -> None:
    columns = layout(width, longest, optional)
    ends = [0]
    for column in columns:
        assert column.start >= ends[-1]
        ends.append(column.start + column.width)
    assert ends[-1] <= width
    [name] = [column for column in columns if column.name == "name"]
    assert name.width >= min(width, longest, NAME_WIDTH)
    if len(columns) > 3:  # a wider terminal shows no less
        wider = {column.name for column in layout(width + 1, longest, optional)}
        assert {column.name for column in columns} <= wider
    assert ends[-1] >= min(width, longest) - GAP


@given(st.integers(1, 200), st.integers(1, 50), st.lists(NAMES, max_size=8), st.booleans(), st.sampled_from(Tab))
def test_no_line_is_wider_than_the_terminal(width: int, height: int, names: list[str], lost: bool, tab: Tab) -> None:
    rows = rows_of(*(created(number, name) for number, name in enumerate(names)))
    for number in range(0, len(names), 2):
        rows.take(
            progress(number, 41, unit="B", rate=12_400_000, eta={"seconds": 9, "low": 5, "high": 9, "from": "rate"})
        )
    rows.tab = tab
    if lost:
        rows.lost()
    view = view_of(rows)
    for keys in ("", "down", "c", "n", "?", "?", "/", *"search", "enter"):
        if keys:
            view.key(keys)
        lines = view.lines(width, height)
        assert len(lines) == height
        assert max(map(width_of, lines)) <= width
        assert not any("\x1b" in SGR.sub("", PLACED.sub("", line)) for line in lines)


@given(NAMES, st.integers(0, 80))
def test_text_is_fitted_to_cells(text: str, width: int) -> None:
    assert cell_len(shorten(text, width)) <= width
    assert cell_len(fit(text, width)) == width
    assert line_width(clip([Span("a"), Span(text), Span(text)], width)) <= width


@given(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x1b[]0;31m写\r\t\x07\\")), st.integers(1, 80)
)
def test_lines_of_a_log_only_set_colours(text: str, width: int) -> None:
    painted = Painter(colors=True).log_line(text, width)
    shown = SGR.sub("", painted.replace("\x1b[0m", ""))
    assert cell_len(re.sub(r"\x1b\[[\d:;]*m", "", shown)) <= width
    assert not re.search(r"[\x00-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\[[\d:;]*m)", shown)


def test_a_redrawn_line_of_a_log_shows_its_end() -> None:
    assert Painter(colors=False).log_line("\x1b[32m10%\r20%\x1b[K\r\x1b[32m30%\x1b[0m\r\n", 80) == "30%\x1b[0m"


KEYS = {
    b"\x1b[A": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "pageup",
    b"\x1b[H": "home",
    b"\x1b[4~": "end",
    b"\r": "enter",
    b"\x7f": "backspace",
    b"\x1b[Z": "backtab",
    b"q": "q",
    "写".encode(): "写",
    b"\x1b[1;5P": "",
    b"\x1b[?62;c": "",
    b"\x00": "",
}


@given(st.lists(st.sampled_from(sorted(KEYS))), st.data())
def test_keys_are_the_same_however_they_arrive(typed: list[bytes], data: st.DataObject) -> None:
    keys, decoder, text = list[str](), Keys(), b"".join(typed)
    while text:
        cut = data.draw(st.integers(1, len(text)))
        keys += decoder.feed(text[:cut])
        text = text[cut:]
    assert keys + decoder.flush() == [KEYS[one] for one in typed if KEYS[one]]


@given(st.binary())
def test_any_bytes_are_keys(data: bytes) -> None:
    decoder = Keys()
    decoder.feed(data)
    assert decoder.flush() in ([], ["escape"])
    assert decoder.feed(b"q") == ["q"]


def test_escape_is_a_key_if_nothing_follows() -> None:
    decoder = Keys()
    assert decoder.feed(b"\x1b") == []
    assert decoder.incomplete
    assert decoder.flush() == ["escape"]
    assert decoder.feed(b"\x1b\x1b[Aq") == ["escape", "up", "q"]


def test_tabs_count_and_sort_stalled_jobs_up() -> None:
    rows = rows_of(
        *(created(number) for number in range(1, 6)),
        created(6, status="queued"),
        progress(2, 10, stalled=True),
        message("status_change", 3, old_status="processing", new_status="failed"),
        message("error", 3, message="the disk is full"),
        message("status_change", 4, old_status="processing", new_status="cancelled"),
    )
    assert list(rows.counts.values()) == [3, 1, 2, 2, 6]
    assert rows.shown[0].id == job_id(2)
    rows.tab = Tab.ATTENTION
    assert [row.id for row in rows.shown] == [job_id(2), job_id(3)]
    rows.mark_slow({job_id(1), job_id(3)})
    assert [row.id for row in rows.shown] == [job_id(2), job_id(1), job_id(3)]
    assert "slower than usual" in "".join(view_of(rows).lines(120, 20))
    rows.take(progress(1, 12))
    assert rows.counts[Tab.ATTENTION] == 3
    rows.mark_slow(set())
    rows.take(progress(2, 11))
    rows.wanted = Filter(search="DISK full")
    assert [row.id for row in rows.shown] == [job_id(3)]
    rows.take(message("job_deleted", 3, status="failed"))
    assert not rows.shown


class CountingPainter(Painter):
    """Count the spans that are painted."""

    spans = 0

    def paint(self, line: Sequence[Span], base: str = "") -> str:
        self.spans += len(line)
        return super().paint(line, base)


def test_only_the_jobs_on_the_screen_are_painted() -> None:
    rows = rows_of(*(created(number, f"job {number}") for number in range(10_000)))
    painter = CountingPainter(colors=True)
    view = ListView(rows, painter, "", Actions(*[lambda *_: None] * 6))
    for key, last in (("G", 9_999), ("pageup", 9_998), ("g", 15)):
        view.key(key)
        painter.spans = 0
        lines = view.lines(100, 20)
        assert f"job {last}\x1b" in lines[-2] or f"job {last} " in lines[-2]
        assert painter.spans < 20 * 15


def test_the_selection_stays_with_its_job() -> None:
    rows = rows_of(*(created(number, f"job {number}") for number in range(1, 4)))
    view = view_of(rows)
    view.lines(80, 20)
    view.key("down")
    selected = rows.shown[1].name
    rows.take(
        message("job_created", 9, kind="pdf", name="newer", status="processing", created_at="2026-01-02T00:00:00Z")
    )
    [line] = [line for line in view.lines(80, 20) if "\x1b[7m" in line and "All" not in line]
    assert selected in line


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (Filter(), True),
        (Filter(kind="pdf", host="db1", labels={"team": "scan"}), True),
        (Filter(kind="tar"), False),
        (Filter(host="db2"), False),
        (Filter(labels={"team": "other"}), False),
        (Filter(statuses=frozenset([JobStatus.FAILED])), False),
        (Filter(search="SCAN a.p"), True),
        (Filter(search="scan b.pdf"), False),
    ],
)
def test_a_filter_selects_jobs_and_messages(given: Filter, shown: bool) -> None:
    first = created(1, labels={"team": "scan", "host": "db1"})
    assert bool(rows_of(first, given=given).shown) is shown
    assert Selection(given).admits(first) is shown


def test_a_search_finds_what_the_daemon_finds() -> None:
    row_id = job_id(1)
    rows = rows_of(
        created(1, "scan", input_filename="Book.pdf", labels={"team": "archive", "host": "db1"}),
        created(2, "other"),
        message("status_change", 2, old_status="processing", new_status="failed"),
        message("error", 2, message=f"the disk is full{'.' * 1000}unsearched"),
        created(3, "last"),
        message("status_change", 3, old_status="processing", new_status="completed"),
        message("completed", 3, elapsed_seconds=3.2, output_path="/x", download_url="/x", page_count=1),
    )
    for words, found in (
        ("SCAN pdf book archive db1", {1}),
        (row_id, {1}),
        (f"{row_id[:9]} SCAN", {1}),
        (row_id[9:], set[int]()),  # the end of the id
        (row_id[4:], set[int]()),
        ("team", set[int]()),  # the name of a label
        ("full", {2}),
        ("unsearched", set[int]()),
        ("3.2", set[int]()),  # the duration
        ("last", {3}),
    ):
        rows.wanted = Filter(search=words)
        assert {row.id for row in rows.shown} == {job_id(number) for number in found}, words


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({"TERM": "xterm-256color"}, False),
        ({"TERM": "xterm-256color", "WT_SESSION": "1"}, True),
        ({"TERM": "xterm-256color", "VTE_VERSION": "8002"}, True),
        ({"TERM": "xterm-256color", "VTE_VERSION": "7600"}, False),
        (
            {"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app", "TERM_FEATURES": "T3CwLrMSc7UUw9Ts3BFGsSyHNoSxFP"},
            True,
        ),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, True),
        ({"TERM": "tmux-256color", "WT_SESSION": "1"}, False),
    ],
)
def test_only_some_terminals_show_progress_in_their_tab(environ: dict[str, str], shown: bool) -> None:
    assert shows_progress(environ) is shown


def nothing(*_: object) -> None: ...


def job_view_of(row: Row, rows: Rows) -> job_view.JobView:
    actions = job_view.Actions(nothing, nothing, nothing, nothing)
    return job_view.JobView(row, rows, Painter(colors=False), "http://x", actions)


def shown_by(view: ListView | job_view.JobView, width: int, height: int = 20) -> list[str]:
    return [SGR.sub("", line) for line in view.lines(width, height)]


def test_an_open_job_shows_its_keys() -> None:
    view = job_view_of(Row(job_id(1)), Rows(Filter()))
    before = shown_by(view, 60)
    for closing in ("?", "escape", "q"):
        view.key("?")
        help_ = "\n".join(shown_by(view, 60))
        assert all(meaning in help_ for _, meaning in job_view.HELP)
        assert "no output yet" not in help_
        view.key(closing)
        assert shown_by(view, 60) == before


@pytest.mark.parametrize(("passed", "shown"), [(-5, "0 s"), (9.9, "9 s"), (59.9, "59 s"), (125.9, "2 min 5 s")])
def test_an_open_job_shows_for_how_long_it_has_been_running(passed: float, shown: str) -> None:
    rows = rows_of(created(1))
    rows.lost()  # its clock stands still
    rows.lost_since = datetime.fromisoformat(TIME).timestamp() + passed
    view = job_view_of(rows.shown[0], rows)
    assert not any("elapsed" in line for line in shown_by(view, 80))
    view.details = {"created_at": TIME, "started_at": TIME}
    assert any(line.startswith(f"running  {shown} elapsed") for line in shown_by(view, 80))


def test_a_narrow_bottom_line_keeps_the_keys_that_matter_most() -> None:
    rows = rows_of(created(1))
    for view in (view_of(rows), job_view_of(rows.shown[0], rows)):
        assert {"q quit", "? keys", "c cancel", "r retry"} <= set(shown_by(view, 60)[-1].rstrip().split("  "))
        assert shown_by(view, 14)[-1] == "q quit  ? keys"


def test_a_gap_in_the_log_ends_the_line_before_it() -> None:
    view = job_view_of(Row(job_id(1)), Rows(Filter()))
    view.add_log(JobLogData(10, [LogLine(TIME, "o", "begin ", partial=True)]))
    view.add_log(JobLogData(90, [LogLine(TIME, "o", "end")], missed=70))
    shown = [SGR.sub("", line) for line in view.lines(60, 12)]
    begin = shown.index("begin ")
    assert shown[begin + 1 : begin + 3] == ["[70 bytes of the log are missing here]", "end"]
