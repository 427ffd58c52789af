"""`progressd show`: everything about one job."""

import json
from functools import partial

from progressd.cli.commands.show import _facts, _steps
from support.cli import run
from support.reporting import registered, request
from support.serving import ServedDaemon

show = partial(run, "show")


def report(daemon: ServedDaemon, job_id: str, type_: str, **data: object) -> None:
    body = {"type": type_, "data": data}
    answer = daemon.request("POST", f"/api/jobs/{job_id}/events", json=body)
    assert answer.is_success, answer.text


def test_everything_about_a_job(daemon: ServedDaemon) -> None:
    job_id = registered(daemon)
    report(daemon, job_id, "progress", current_step=0, total_steps=4, unit="pages", phase="Scan", step_name="One")
    task = {"id": "a", "name": "Left \x1b[2Jpage", "current": 1_200_000, "total": 2_400_000, "unit": "B"}
    report(daemon, job_id, "progress", current_step=3, total_steps=4, step_name="Two", tasks=[task])
    shown = show(job_id[:8], PROGRESSD_URL=daemon.url)
    assert shown.exit_code == 0, shown.output
    facts = dict(line.split(":", 1) for line in shown.output.splitlines() if ":  " in line)
    assert {name: facts[name].strip() for name in ("Job", "Status", "Step")} == {
        "Job": job_id,
        "Status": "processing",
        "Step": "Scan: Two",
    }
    assert facts["Progress"].strip().startswith("75%, 3/4 pages")
    assert "  Left  [2Jpage  processing  50%  1.2/2.4 MB\n" in shown.output
    assert shown.output.rstrip().endswith("Scan: Two")
    report(daemon, job_id, "log", text="page 1\npage \x1b[2J2\n")
    assert show(job_id, PROGRESSD_URL=daemon.url).output.endswith("\nLog\n  page 1\n  page 2\n")
    report(daemon, job_id, "error", message="no paper")
    ended = show(job_id, PROGRESSD_URL=daemon.url).output
    assert "Error:" in ended
    assert "no paper" in ended
    assert "Ended:" in ended
    whole = show(job_id, "--json", PROGRESSD_URL=daemon.url)
    assert json.loads(whole.output) == request(daemon, "GET", job_id).json()


JOB = {
    "id": "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c",
    "kind": "pdf",
    "status": "processing",
    "attempt": 2,
    "created_at": "2026-01-01T00:00:00Z",
    "started_at": "2026-01-01T00:00:50.5Z",
    "labels": {},
    "options": {"deskew": True, "dpi": 300, "language": "deu"},
    "progress": {"current_step": 1, "total_steps": 2, "step_name": "Scan", "percent": 50},
    "steps": [
        {"step_name": "Scan", "started_at": "2026-01-01T00:00:01Z", "ended_at": "2026-01-01T00:00:50Z"},
        {"step_name": "Scan", "started_at": "2026-01-01T00:00:51Z"},
    ],
}


def test_options_are_shown_as_typed() -> None:
    assert dict(_facts(JOB, ""))["Options"] == "deskew=true, dpi=300, language=deu"


def test_earlier_attempts_are_marked() -> None:
    assert dict(_facts(JOB, ""))["Started"].endswith(", attempt 2, 50 s after the job was created")
    assert [row[-1] for row in _steps(JOB)] == ["Scan (earlier attempt)", "Scan"]
    queued = {name: value for name, value in JOB.items() if name != "started_at"}
    assert [row[-1] for row in _steps(queued)] == ["Scan (earlier attempt)"] * 2


def test_an_unknown_job_is_an_error(daemon: ServedDaemon) -> None:
    shown = show("6e4d1c9e", PROGRESSD_URL=daemon.url)
    assert (shown.exit_code, shown.output.startswith("Error: no job id begins with 6e4d1c9e")) == (1, True)
