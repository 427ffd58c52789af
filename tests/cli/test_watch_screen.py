"""`progressd watch` on a whole terminal, in a real one."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from progressd.cli.screen.finished import Finished
from progressd.cli.screen.rows import Filter, Tab
from progressd.client.rest import RestClient
from support.cli import PROGRESSD, run, started
from support.screen import Screen
from support.serving import ServedDaemon, served_daemon
from support.terminal import in_terminal
from support.waiting import PATIENCE

NAMES = ["写真のバックアップ 2026年 夏休み 家族旅行", "rsync --archive --delete /srv/photographs /backup", "short"]
NORMAL = {"25", "7"}  # modes of a terminal that no program has taken
DIM, RED = "2", "31"  # parameters of SGR


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    """Return a daemon with three running jobs, and one that failed."""
    with served_daemon(tmp_path_factory.mktemp("screen") / "state") as daemon:
        for number, name in enumerate(NAMES):
            new_job(daemon, name, percent=10 * number)
        report(daemon, new_job(daemon, "broken", labels={"team": "scan"}), "error", message="the disk is full")
        yield daemon


def new_job(daemon: ServedDaemon, name: str, percent: int = 0, **more: Any) -> str:
    job = daemon.request("POST", "/api/jobs", json={"kind": "test", "name": name, **more}).json()["id"]
    report(daemon, job, "status_change", new_status="processing")
    move(daemon, job, percent)
    return str(job)


def report(daemon: ServedDaemon, job: str, type_: str, **data: object) -> None:
    daemon.request("POST", f"/api/jobs/{job}/events", json={"type": type_, "data": data}).raise_for_status()


def report_all(daemon: ServedDaemon, events: list[dict[str, Any]]) -> None:
    lines, headers = "\n".join(map(json.dumps, events)), {"Content-Type": "application/x-ndjson"}
    daemon.request("POST", "/api/events", content=lines, headers=headers).raise_for_status()


def move(daemon: ServedDaemon, job: str, percent: int, step: str = "Copying") -> None:
    report(daemon, job, "progress", current_step=percent, total_steps=100, step_name=step, percent=percent)


def command(daemon: ServedDaemon, *options: str, **environ: str) -> list[str]:
    settings = [f"{name}={value}" for name, value in {"TERM": "xterm", **environ}.items()]
    return ["env", *settings, *PROGRESSD, "watch", "--url", daemon.url, *options]


@contextlib.contextmanager
def watching(words: Sequence[str]) -> Iterator[tuple[Any, Screen]]:
    with in_terminal(words) as (process, terminal):
        screen = Screen(terminal)
        screen.wait_for("q quit")
        yield process, screen


def status(process: Any, screen: Screen) -> int:
    """Read to the end, and return the exit status. The terminal must be as it was."""
    with contextlib.suppress(OSError):
        while True:
            screen.read()
    assert screen.modes == NORMAL
    return int(process.wait(PATIENCE))


def test_the_list_shows_names_at_any_width_and_opens_a_job(own: ServedDaemon) -> None:
    job = new_job(own, "opened", 40)
    move(own, job, 41, "Verifying")
    with watching(command(own)) as (process, screen):
        screen.wait(lambda screen: "Running 4 " in screen.text and "the disk is full" in screen.text)
        screen.wait(lambda screen: screen.modes == {"1049"})  # a drawing may have arrived in part
        assert all(name[:7] in screen.text for name in NAMES)
        assert "41%" in screen.line("opened")
        assert RED in screen.styles("the disk is full")
        move(own, job, 42, "Verifying")
        screen.wait(lambda screen: "42%" in screen.line("opened"))
        for columns in (40, 200):
            screen.resize(20, columns)
            screen.wait(lambda screen: "42%" in screen.line("opened") and "q quit" in screen.lines[-1])
            assert all(screen.line(name[:7]) for name in NAMES)
            assert bool(screen.line("Verifying")) == (columns > 40)
        screen.type("/OPENED\r")
        screen.wait_for("All 1")
        screen.type("\r")
        screen.wait_for("Steps")
        assert "Verifying" in screen.text
        move(own, job, 50, "Verifying")
        screen.wait_for("50%")
        screen.type("\x1b")
        screen.wait_for("All 1")
        screen.type("\x1b")
        screen.wait_for("All 5")
        screen.type("q")
        assert status(process, screen) == 0
    report(own, job, "completed")


def test_tabs_help_and_actions(own: ServedDaemon) -> None:
    job = new_job(own, "to cancel")
    with watching(command(own, "--search", "cancel", NO_COLOR="1")) as (process, screen):
        screen.wait_for("to cancel")
        screen.type("?")
        screen.wait_for("retry the failed or cancelled job")
        screen.type("?c")
        screen.wait_for("Cancel to cancel? (y/n)")
        screen.type("nr")
        screen.wait_for("only failed and cancelled jobs can be retried")
        assert own.job(job)["status"] == "processing"
        screen.type("cy")
        screen.wait_for("Finished 1 ")
        screen.type("r")
        screen.wait_for("only its producer can retry it")
        screen.type("4")
        screen.wait_for("Finished 1 ")
        assert "Running 0 " in screen.text
        screen.type("1")
        screen.wait_for("no job matches")
        screen.type("\x03")
        assert status(process, screen) == 128 + signal.SIGINT
    colors = re.compile(rb"\x1b\[(?:\d+;)*3[0-9](?:;\d+)*m")
    assert not colors.search(screen.terminal.shown)


def test_the_log_is_live_and_keeps_its_colours(own: ServedDaemon, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    script = f"printf '\\033[32mgreen\\033[0m \\033[2Jbefore\\n'; until [ -e {gate} ]; do sleep 0.01; done; echo after"
    words = [*PROGRESSD, "run", "--url", own.url, "--name", "logged", "--", "sh", "-c", script]
    with started(words, stdout=subprocess.DEVNULL), watching(command(own, "--search", "logged")) as (process, screen):
        screen.wait_for("All 1")
        screen.type("\r")
        screen.wait_for("green before")
        assert "32" in screen.styles("green")
        assert "32" not in screen.styles("before")
        gate.touch()
        screen.wait_for("after")
        screen.wait_for("done")
        screen.type("q")
        assert status(process, screen) == 0


def test_an_open_job_moves_at_once_whatever_the_interval(own: ServedDaemon) -> None:
    job = new_job(own, "eager", 10)
    with watching(command(own, "--interval", "60", "--search", "eager")) as (process, screen):
        screen.wait_for("10%")
        screen.type("\r")
        for percent in (20, 30):
            screen.wait_for("Esc back")
            move(own, job, percent)
            screen.wait_for(f"{percent}%")
        screen.type("q")
        assert status(process, screen) == 0
    report(own, job, "completed")


def test_ctrl_z_gives_the_terminal_back(own: ServedDaemon) -> None:
    with in_terminal(["bash", "--norc", "--noediting", "-i"]) as (_, terminal):
        screen = Screen(terminal)
        screen.wait_for("%")
        before = terminal.settings()
        screen.type(" ".join(command(own)) + "\n")
        for _ in range(2):
            screen.wait_for("q quit")
            screen.wait_for("short")
            screen.type("\x1a")
            screen.wait(lambda screen: "Stopped" in screen.text and "%" in screen.text.rpartition("Stopped")[2])
            assert (screen.modes, terminal.settings()) == (NORMAL, before)
            screen.type("fg\n")
        screen.wait_for("q quit")
        screen.type("q")
        screen.wait(lambda screen: screen.modes == NORMAL)
        assert terminal.settings() == before


@pytest.mark.parametrize("end", ["raise RuntimeError('crashed')", "os.kill(os.getpid(), 15)"])
def test_a_crash_gives_the_terminal_back(end: str) -> None:
    program = f"""
import os, signal, sys
from progressd.cli.screen.terminal import FullScreen
signal.signal(15, lambda *_: sys.exit(3))
with FullScreen(0, 1, {{"WT_SESSION": "1"}}) as screen:
    screen.draw(["one", "two"])
    screen.progress("normal", 41)
    {end}
"""
    with in_terminal([sys.executable, "-c", program]) as (process, terminal):
        screen = Screen(terminal)
        assert status(process, screen) != 0
    assert screen.titles == ["9;4;1;41", "9;4;0;0"]
    assert ("crashed" in screen.text) == ("crashed" in end)


def test_a_lost_connection_dims_the_list(tmp_path: Path, free_port: int) -> None:
    with served_daemon(tmp_path / "state", port=free_port) as daemon:
        job = new_job(daemon, "kept", 40)
        with watching(command(daemon, WT_SESSION="1")) as (process, screen):
            screen.wait_for("kept")
            move(daemon, job, 41)
            screen.wait(lambda screen: "9;4;1;41" in screen.titles)
            assert DIM not in screen.styles("kept")
            daemon.kill()
            screen.wait_for("No connection since ")
            assert "What you see is from then." in screen.text
            assert {DIM} <= screen.styles("kept")
            screen.wait(lambda screen: screen.titles[-1] == "9;4;4;41")
            screen.type("\r")
            screen.wait_for("Log  no daemon answers")
            with served_daemon(tmp_path / "state", port=free_port) as again:
                screen.wait(lambda screen: "No connection" not in screen.text)
                screen.wait_for("no output yet")
                screen.type("\x1b")
                screen.wait_for("All 1")
                assert DIM not in screen.styles("kept")
                move(again, job, 60)
                screen.wait(lambda screen: "60%" in screen.line("kept"))
                screen.type("q")
                assert status(process, screen) == 0
        assert screen.titles[-1] == "9;4;0;0"


def test_only_what_is_shown_is_drawn(own: ServedDaemon) -> None:
    jobs = [str(uuid.uuid4()) for _ in range(60)]
    for number, job in enumerate(jobs):
        created = {"kind": "test", "name": f"many {number}", "labels": {"team": "many"}}
        report_all(own, [{"type": "job_created", "job_id": job, "data": created}])
    report_all(
        own, [{"type": "progress", "job_id": job, "data": {"current_step": 0, "total_steps": 9}} for job in jobs]
    )
    with watching(command(own, "--label", "team=many", "--interval", "0")) as (process, screen):
        screen.wait(lambda screen: "Running 60 " in screen.text and "many 59" in screen.text)
        assert "many 0 " not in screen.text
        move(own, jobs[59], 5)
        screen.wait(lambda screen: " 5%" in screen.line("many 59"))  # the list is live
        frames, began = screen.frames, time.monotonic()
        events = [
            {"type": "progress", "job_id": jobs[0], "data": {"current_step": n, "total_steps": 900, "step_name": "x"}}
            for n in range(1, 801)
        ]
        report_all(own, events)
        move(own, jobs[59], 77)
        screen.wait(lambda screen: "77%" in screen.line("many 59"))
        assert screen.frames - frames <= 3 + 2 * (time.monotonic() - began)  # its remaining time counts down
        screen.type("G")
        screen.wait(lambda screen: "88%" in screen.line("many 0 "))
        report_all(own, events)
        move(own, jobs[0], 99)
        screen.wait(lambda screen: "99%" in screen.line("many 0 "))
        assert screen.frames - frames <= 20 + (time.monotonic() - began) / 0.1
        screen.type("q")
        assert status(process, screen) == 0
    report_all(own, [{"type": "completed", "job_id": job} for job in jobs])


def test_finished_jobs_come_page_by_page(own: ServedDaemon) -> None:
    jobs = [str(uuid.uuid4()) for _ in range(700)]
    created = {"kind": "test", "labels": {"team": "old"}}
    begun = {"new_status": "processing"}
    report_all(own, [{"type": "job_created", "job_id": job, "data": created} for job in jobs])
    report_all(own, [{"type": "status_change", "job_id": job, "data": begun} for job in jobs])
    report_all(own, [{"type": "completed", "job_id": job} for job in jobs])
    finished = Finished(Filter(labels={"team": "old"}))
    with RestClient(own.url) as client:
        found = finished.begin(client)
        assert (len(found), finished.complete, finished.totals) == (500, False, {Tab.FINISHED: 700})
        found += finished.more(client)
        assert (finished.complete, finished.totals, finished.more(client)) == (True, {}, [])
    assert {job["id"] for job in found} == {*jobs}


def test_lines_in_a_pipe_can_be_selected(own: ServedDaemon) -> None:
    words = [
        *PROGRESSD,
        "watch",
        "--url",
        own.url,
        "--label",
        "team=pipe",
        "--search",
        "WANTED",
        "--status",
        "processing",
    ]
    with started(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        new_job(own, "other", labels={"team": "pipe"})
        job = new_job(own, "wanted", 5, labels={"team": "pipe", "host": "db1"})
        fields = process.stdout.readline().rstrip("\n").split("\t")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", fields[0])
        assert fields[1:] == ["wanted", "started", job]
        _, name, change, last = process.stdout.readline().split("\t")
        assert (name, change.startswith("5% 5/100 Copying"), last) == ("wanted", True, f"{job}\n")


@pytest.mark.parametrize("option", ["--status=failed", "--kind=a", "--host=a", "--search=a", "--label=a=b"])
def test_filters_are_for_all_jobs(option: str) -> None:
    result = run("watch", "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c", option)
    assert result.exit_code == 2
    assert "omit JOB" in result.output


def test_a_dumb_terminal_gets_lines(own: ServedDaemon) -> None:
    with in_terminal(command(own, "--search", "short", TERM="dumb")) as (_, terminal):
        assert b"\x1b" not in terminal.read(rb"\tshort\tstarted\t")
