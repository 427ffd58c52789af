"""`progressd watch` on a whole terminal, in a real one."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from support.cli import PROGRESSD
from support.screen import Screen
from support.serving import ServedDaemon, served_daemon
from support.terminal import in_terminal
from support.waiting import PATIENCE

NAMES = ["写真のバックアップ 2026年 夏休み 家族旅行", "rsync --archive --delete /srv/photographs /backup", "short"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    """Return a daemon with three running jobs."""
    with served_daemon(tmp_path_factory.mktemp("screen") / "state") as daemon:
        for number, name in enumerate(NAMES):
            new_job(daemon, name, percent=10 * number)
        yield daemon


def new_job(daemon: ServedDaemon, name: str, percent: int = 0, **more: Any) -> str:
    job = daemon.request("POST", "/api/jobs", json={"kind": "test", "name": name, **more}).json()["id"]
    report(daemon, job, "status_change", new_status="processing")
    report(daemon, job, "progress", current_step=percent, total_steps=100, step_name="Copying", percent=percent)
    return str(job)


def report(daemon: ServedDaemon, job: str, type_: str, **data: object) -> None:
    daemon.request("POST", f"/api/jobs/{job}/events", json={"type": type_, "data": data}).raise_for_status()


@contextlib.contextmanager
def watching(daemon: ServedDaemon, *options: str, **environ: str) -> Iterator[tuple[Any, Screen]]:
    settings = [f"{name}={value}" for name, value in {"TERM": "xterm", **environ}.items()]
    with in_terminal(["env", *settings, *PROGRESSD, "watch", "--url", daemon.url, *options]) as (process, terminal):
        screen = Screen(terminal)
        screen.wait_for("quit")
        yield process, screen


def ended(process: Any, screen: Screen) -> int:
    """Read to the end, and return the exit status."""
    with contextlib.suppress(OSError):
        while True:
            screen.read()
    return int(process.wait(PATIENCE))


def test_the_list_shows_names_and_opens_a_job(own: ServedDaemon) -> None:
    job = new_job(own, "opened", 40)
    report(own, job, "progress", current_step=41, total_steps=100, step_name="Verifying", percent=41)
    with watching(own) as (process, screen):
        screen.wait(lambda screen: all(name[:15] in screen.text for name in [*NAMES, "opened"]))
        assert "41%" in screen.line("opened")
        assert screen.modes == {"1049", "1007"}
        screen.type("/opened\r")
        screen.wait_for("All 1")
        screen.type("\r")
        screen.wait_for("Steps")
        assert "Verifying" in screen.text
        report(own, job, "progress", current_step=50, total_steps=100, step_name="Verifying", percent=50)
        screen.wait_for("50%")
        screen.type("\x1b")
        screen.wait_for("All 1")
        screen.type("q")
        assert ended(process, screen) == 0
        assert screen.modes == {"25", "7"}
    report(own, job, "completed")
