import io
import json
import re
from datetime import UTC, date, datetime

import pytest
from progressd.cli import text
from progressd.cli.display import BarDisplay, ChangeDisplay, LineDisplay
from progressd.client.watcher import Disconnected, Received
from progressd.core.messages import decode
from rich.console import Console

JOB = "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"
URL = "http://127.0.0.1:8080"


def received(type_: str, job_id: str = JOB, **data: object) -> Received:
    raw = json.dumps({"type": type_, "job_id": job_id, "data": data})
    return Received(raw, decode(raw))


CREATED = received(
    "job_created", kind="pdf", status="queued", created_at="2026-01-01T00:00:00Z", input_filename="a.pdf"
)
STARTED = received("status_change", old_status="queued", new_status="processing")
MOVED = received("progress", current_step=5, total_steps=12, step_name="AI Upscaling", percent=41, eta_seconds=65)
COMPLETED = received("completed", output_path="/api/x", elapsed_seconds=45.2, page_count=12, download_url="/api/x")
FAILED = received("error", message="Pipeline error")
CANCELLED = received("status_change", old_status="queued", new_status="cancelled")
PREVIEW = received("page_preview", page_number=3, preview_base64="", stage="Finished", width=1, height=1)
SHUTDOWN = received("server_shutdown", reason="the daemon is stopping", countdown_secs=30)
FAILING = received("server_status", status="failing", error="the disk is full")
WELL = received("server_status", status="healthy")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (CREATED, f"{JOB} job_created pdf: a.pdf"),
        (
            received(
                "job_created", kind="rsync", name="rsync -a /a /b", status="queued", created_at="2026-03-01T00:00:00Z"
            ),
            f"{JOB} job_created rsync: rsync -a /a /b",
        ),
        (STARTED, f"{JOB} status_change queued -> processing"),
        (MOVED, f"{JOB} progress 41% 5/12 AI Upscaling, about 65 s left"),
        (COMPLETED, f"{JOB} completed in 45 s, 12 pages: {URL}/api/x"),
        (FAILED, f"{JOB} error Pipeline error"),
        (FAILING, "- server_status the disk is full"),
        (WELL, "- server_status healthy"),
        (SHUTDOWN, "- server_shutdown the daemon is stopping, within 30 s"),
        (received("resync"), "- resync"),
        (PREVIEW, None),
        (received("error", message="a\n\x1b[2Jb\u202e\x85c"), f"{JOB} error a [2Jb c"),
        (
            received("progress", current_step=5, total_steps=12, step_name="AI", percent=41, stalled=True),
            f"{JOB} progress 41% 5/12 AI, stalled",
        ),
        (
            received(
                "progress",
                current_step=3,
                total_steps=3,
                step_name="",
                percent=100,
                eta_seconds=1,
                eta={"seconds": 1, "low": 0.5, "high": 2, "from": "history"},
            ),
            f"{JOB} progress 100% 3/3",
        ),
    ],
)
def test_a_message_is_at_most_one_line(message: Received, line: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with LineDisplay(URL, as_json=False) as display:
        display.show(message)
    assert capsys.readouterr().out == (f"{line}\n" if line else "")


@pytest.mark.parametrize(("current", "counted"), [(0, ""), (7, "7 ")])
def test_steps_without_a_total(current: int, counted: str, capsys: pytest.CaptureFixture[str]) -> None:
    moved = received("progress", current_step=current, total_steps=0, step_name="Copying", percent=54)
    with LineDisplay(URL, as_json=False) as display:
        display.show(moved)
    assert capsys.readouterr().out == f"{JOB} progress 54% {counted}Copying\n"
    on_terminal, screen = bars()
    with on_terminal:
        on_terminal.show(moved)
        on_terminal._progress.refresh()
        assert "/0" not in screen.getvalue()


def test_an_unknown_percentage_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = received("progress", current_step=0, total_steps=0, step_name="Looking", percent=0)
    with LineDisplay(URL, as_json=False) as display:
        display.show(nothing)
    assert capsys.readouterr().out == f"{JOB} progress Looking\n"
    on_terminal, screen = bars()
    with on_terminal:
        for message in (
            CREATED,
            STARTED,
            nothing,
            received("progress", current_step=0, total_steps=2, step_name="", percent=0),
        ):
            assert "%" not in screen.getvalue()
            on_terminal.show(message)
            on_terminal._progress.refresh()
        assert " 0%" in screen.getvalue().splitlines()[-1]
        on_terminal.show(received("status_change", old_status="processing", new_status="queued"))
        on_terminal._progress.refresh()
        assert "%" not in screen.getvalue().splitlines()[-1]


def test_json_includes_unknown_types(capsys: pytest.CaptureFixture[str]) -> None:
    with LineDisplay(URL, as_json=True) as display:
        display.show(Received('{"type":"new",  "a":1}', None))
        display.show(MOVED)
    assert capsys.readouterr().out == f'{{"type":"new",  "a":1}}\n{MOVED.text}\n'


def test_a_lost_connection_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with LineDisplay(URL, as_json=False) as display:
        for failures in range(3):
            display.disconnected(Disconnected("draining", 1.0, failures))
        display.show(STARTED)
        display.show(MOVED)
    assert capsys.readouterr().err == "connection lost: the daemon is stopping; reconnecting\nreconnected\n"


def test_lines_of_all_jobs_have_a_time_and_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    time = "2026-01-01T00:00:01.5Z"
    when = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC).astimezone().isoformat()
    messages = [
        CREATED,
        STARTED,
        MOVED,
        PREVIEW,
        received("status_change", old_status="processing", new_status="failed"),
        FAILED,
    ]
    with ChangeDisplay(URL) as display:
        for message in messages:
            raw = json.dumps({**json.loads(message.text), "time": time})
            display.show(Received(raw, decode(raw)))
    changes = ["created", "started", "41% 5/12 AI Upscaling, about 65 s left", "failed: Pipeline error"]
    assert capsys.readouterr().out.splitlines() == [f"{when}\ta.pdf\t{change}\t{JOB}" for change in changes]


def bars(names: dict[str, str] | None = None, width: int = 120) -> tuple[BarDisplay, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    return BarDisplay(URL, names or {}, console), screen


def test_bars_show_the_progress() -> None:
    display, screen = bars()
    with display:
        for message in (CREATED, STARTED, MOVED):
            display.show(message)
        display._progress.refresh()
        shown = screen.getvalue().splitlines()[-1]
    for part in ("6e4d1c9e", "a.pdf", " 41%", "AI Upscaling", "5/12", "about 65 s left"):
        assert part in shown


def test_the_remaining_time_counts_down_without_messages() -> None:
    now, screen = 1000.0, io.StringIO()
    console = Console(
        file=screen, force_terminal=True, width=120, color_system=None, legacy_windows=False, get_time=lambda: now
    )
    eta = {"seconds": 60, "low": 48, "high": 75, "from": "producer"}
    moved = {"current_step": 1, "total_steps": 3, "step_name": "", "percent": 33, "unit": "pages", "rate": 2}
    with BarDisplay(URL, {}, console) as display:
        display.show(received("progress", **moved, eta=eta, eta_seconds=60))
        shown = []
        for passed in (0, 12, 55, 60, 70):
            now = 1000.0 + passed
            display._progress.refresh()
            shown.append(screen.getvalue().splitlines()[-1].partition("pages/s")[2].partition("1/3")[0].strip())
    assert shown == ["about 60 s left", "40–65 s left", "5 s left", "", ""]


@pytest.mark.parametrize(
    ("width", "begins", "bar"),
    [
        (120, "6e4d1c9e a name that is long", "━━━━━━━━━╸"),  # 41 % of 24; the rest is blank without colours
        (80, "6e4d1c9e a name t", "━━━━━━╸"),
        (70, "a name that is long… ", "━━━"),
        (60, "a name that is long… ", "━━"),
        (40, "a name tha… ", "━━"),
    ],
)
def test_a_narrow_terminal_shows_names_and_short_bars(width: int, begins: str, bar: str) -> None:
    display, screen = bars({JOB: "a name that is long " * 3}, width)
    with display:
        display.show(
            received(
                "progress",
                current_step=4,
                total_steps=21,
                step_name="Upscaling " * 9,
                percent=41,
                eta_seconds=138,
                unit="B",
                rate=12_400_000.0,
            )
        )
        display._progress.refresh()
        shown = screen.getvalue().splitlines()[-1].rpartition("\r")[2].removeprefix("\x1b[2K")
    assert shown.startswith(begins)
    assert bar in shown
    assert " 41% " in shown
    assert "about 2 min left" in shown
    assert ("12.4 MB/s" in shown) == (width >= 80)
    assert ("4/21" in shown) == (width >= 60)
    assert len(shown.rstrip()) <= width


def test_hidden_bars_are_counted() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=8, color_system=None, legacy_windows=False)
    names = {f"{number:08}-0000-4000-8000-000000000000": f"{number}.pdf" for number in range(10)}
    display = BarDisplay(URL, names, console)
    with display:
        for number in (2, 4):
            display.show(
                received(
                    "progress", job_id=list(names)[number], current_step=1, total_steps=2, percent=50, step_name="x"
                )
            )
        display.disconnected(Disconnected("draining", 1.0, 0))
        screen.truncate(0)
        display._progress.refresh()
        shown = [line for part in screen.getvalue().split("\n") if (line := part.rpartition("\x1b[2K")[2].strip())]
    assert [line[:8] for line in shown] == ["00000004", "00000002", "00000009", "00000008", "00000007", "… and 5 "]


def test_the_bars_are_dim_while_the_connection_is_lost() -> None:
    console = Console(force_terminal=True, width=80, color_system="standard", legacy_windows=False, file=io.StringIO())
    display = BarDisplay(URL, {JOB: "a.pdf"}, console)  # not started, because its thread would draw too
    for lost in (False, True, False):
        if lost:
            display.disconnected(Disconnected("draining", 1.0, 0))
        else:
            display.show(MOVED)
        with console.capture() as shown:
            console.print(*display._progress.get_renderables())
        assert bool(re.search(r"\x1b\[(?:2|2;[0-9;]+)ma\.pdf", shown.get())) is lost


def test_an_empty_display_says_so() -> None:
    display, screen = bars()
    with display:
        display._progress.refresh()
        assert "waiting for jobs" in screen.getvalue()
        display.show(MOVED)
        display._progress.refresh()
        assert "waiting" not in screen.getvalue().splitlines()[-1]
        display.show(COMPLETED)
        display._progress.refresh()
        assert "waiting for jobs" in screen.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (COMPLETED, f"completed 6e4d1c9e a.pdf in 45 s, 12 pages: {URL}/api/x"),
        (FAILED, "failed 6e4d1c9e a.pdf Pipeline error"),
        (CANCELLED, "cancelled 6e4d1c9e a.pdf"),
    ],
)
def test_a_finished_job_becomes_a_line(end: Received, line: str) -> None:
    display, screen = bars({JOB: "a.pdf"})
    with display:
        display.show(MOVED)
        display.show(end)
        assert not display._progress.tasks
    assert any(line in shown for shown in screen.getvalue().splitlines())


def test_the_bar_of_a_deleted_job_goes() -> None:
    display, screen = bars({JOB: "a.pdf"})
    with display:
        display.show(MOVED)
        display.show(received("job_deleted", status="failed"))
        assert not display._progress.tasks
        assert "job 6e4d1c9e was deleted" in screen.getvalue()
        display.show(received("job_deleted", status="failed"))
    assert screen.getvalue().count("was deleted") == 1


def test_markup_in_a_name_is_text() -> None:
    display, screen = bars({JOB: "[red]a[/red].pdf"})
    with display:
        display.show(FAILED)
    assert "failed 6e4d1c9e [red]a[/red].pdf Pipeline error" in screen.getvalue()


def test_a_resync_clears_the_bars() -> None:
    display, _ = bars()
    with display:
        display.show(MOVED)
        display.show(received("resync"))
        assert not display._progress.tasks
        display.show(MOVED)
        assert len(display._progress.tasks) == 1


def test_times_of_today_are_short() -> None:
    today = date(2026, 7, 15)
    assert text.short_time(datetime(2026, 7, 15, 0, 0, 1).astimezone().isoformat(), today) == "00:00:01"
    assert text.short_time(datetime(2026, 7, 14, 23, 59, 59).astimezone().isoformat(), today) == "2026-07-14"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "less than 0.1 s"),
        (0.04, "less than 0.1 s"),
        (0.06, "0.1 s"),
        (9.96, "10 s"),
        (12.4, "12 s"),
        (59.9, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3780, "1 h 3 min"),
    ],
)
def test_durations_have_units(value: float, shown: str) -> None:
    assert text.seconds(value) == shown


def test_external_results_keep_their_url() -> None:
    assert text.result_url("https://files.example/x", URL) == "https://files.example/x"
    assert text.result_url("/api/x", f"{URL}/base/") == f"{URL}/base/api/x"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (12_430_000.0, "B", "12.4 MB/s"),
        (999.0, "B", "999 B/s"),
        (0.0, "B", "0 B/s"),
        (3.14, "pages", "3.1 pages/s"),
        (1234567.0, "it", "1,234,567 it/s"),
        (0.04, "pages", "2.4 pages/min"),
        (0.001, "pages", "3.6 pages/h"),
        (1.0, "a\x1b[2J", "1.0 a [2J/s"),
    ],
)
def test_rates_are_short(value: float, unit: str, shown: str) -> None:
    assert text.rate(value, unit) == shown


@pytest.mark.parametrize(
    ("current", "total", "unit", "shown"),
    [
        (3, 12, "pages", "3/12 pages"),
        (1_240_000, 3_400_000_000, "B", "0.0/3.4 GB"),
        (12, 900, "B", "12/900 B"),
        (5_000_000, 0, "B", "5.0 MB"),
        (7, 0, "files", "7 files"),
        (0, 0, "files", ""),
    ],
)
def test_counts_have_their_unit(current: int, total: int, unit: str, shown: str) -> None:
    assert text.counts(current, total, unit) == shown


TASKS = [
    {"id": "a", "name": "Layer a", "current": 25, "total": 100, "state": "processing", "unit": "B"},
    {"id": "b", "name": "Layer b", "current": 7, "total": 0, "state": "failed"},
]


def test_tasks_are_indented_below_their_job() -> None:
    moved = received(
        "progress",
        current_step=0,
        total_steps=0,
        step_name="",
        percent=40,
        unit="B",
        rate=12_400_000.0,
        phase="Pulling",
        tasks=TASKS,
    )
    on_terminal, screen = bars()
    with on_terminal:
        on_terminal.show(CREATED)
        on_terminal.show(moved)
        on_terminal._progress.refresh()
    lines = screen.getvalue().splitlines()
    assert any("a.pdf" in line and "40%" in line and "12.4 MB/s" in line and "Pulling" in line for line in lines)
    assert any("  Layer a" in line and "25%" in line and "25/100 B" in line for line in lines)
    assert any("  Layer b" in line and "failed" in line for line in lines)
    assert text.line(moved.message, URL) == f"{JOB} progress 40% Pulling, 12.4 MB/s"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "low", "high", "shown"),
    [
        (0, 0, 60, ""),
        (3.2, 1, 9, "4 s left"),
        (12, 11, 14, "12 s left"),
        (43, 38, 50, "about 45 s left"),
        (20, 10, 40, "10–40 s left"),
        (240, 200, 300, "about 4 min left"),
        (240, 170, 350, "3–6 min left"),
        (70, 20, 200, "up to 3 min left"),
        (100, 61, 100, "1–2 min left"),
        (9000, 8000, 9500, "about 2.5 h left"),
        (9000, 5400, 14400, "1.5–4.0 h left"),
    ],
)
def test_an_uncertain_remaining_time_is_an_interval(seconds: float, low: float, high: float, shown: str) -> None:
    assert text.remaining(seconds, low, high) == shown


def test_a_wide_terminal_shows_longer_names() -> None:
    command = "rsync --archive --delete /srv/photographs"
    display, screen = bars(width=121)
    with display:
        display.show(
            received("job_created", kind="rsync", name=command, status="queued", created_at="2026-01-01T00:00:00Z")
        )
        display.show(received("progress", current_step=1, total_steps=0, step_name="Copying", percent=1))
        display._progress.refresh()
        display.show(
            received("progress", current_step=2, total_steps=0, step_name="Copying", percent=2, eta_seconds=99)
        )
        display._progress.refresh()
    lines = [line for line in screen.getvalue().splitlines() if "Copying" in line]
    assert all("rsync --archive --delete /srv/photograp…" in line for line in lines)
    assert "about 2 min left" in lines[-1]
    assert len({line.index("Copying") for line in lines}) == 1


@pytest.mark.parametrize(("percent", "shown"), [(99, "2 s left"), (100, "")])
def test_a_listed_job_at_100_percent_has_no_time_left(percent: int, shown: str) -> None:
    job = {"progress": {"percent": percent, "eta": {"seconds": 2, "low": 1, "high": 3}}}
    assert text.outcome(job) == shown
