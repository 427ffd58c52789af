"""Jobs in every state, as real programs report them: for screenshots and for tests of the page as a whole."""

import json
import uuid
from typing import Any

from support.serving import ServedDaemon
from support.waiting import until

Event = dict[str, Any]

STALLED_AFTER = 3  # seconds; after three times as long, the job fails
HOSTS = ("db1", "media", "build-7", "pi")
COLOURS = "\033[1mPASSED\033[0m \033[32m✓\033[0m tests/test_cart.py \033[2m(12 tests)\033[0m"


def progress(step_name: str, current: float, total: float, **details: Any) -> Event:
    return {
        "type": "progress",
        "data": {"step_name": step_name, "current_step": current, "total_steps": total, **details},
    }


def started() -> Event:
    return {"type": "status_change", "data": {"new_status": "processing"}}


def completed(**data: Any) -> Event:
    return {"type": "completed", "data": data}


def failed(message: str) -> Event:
    return {"type": "error", "data": {"message": message}}


def logged(text: str, stream: str = "stdout") -> Event:
    return {"type": "log", "data": {"text": text, "stream": stream}}


def report(daemon: ServedDaemon, job_id: str, *events: Event) -> None:
    """Report events on a job."""
    lines = "".join(json.dumps(event) + "\n" for event in events)
    headers = {"Content-Type": "application/x-ndjson"}
    answer = daemon.request("POST", f"/api/jobs/{job_id}/events", content=lines, headers=headers)
    assert answer.is_success, answer.text


def job(daemon: ServedDaemon, name: str, *events: Event, kind: str = "backup", host: str = "db1", **data: Any) -> str:
    """Register a job, report events on it, and return its id."""
    body = {"id": str(uuid.uuid4()), "name": name, "kind": kind, "labels": {"host": host, "user": "ann"}, **data}
    answer = daemon.request("POST", "/api/jobs", json=body)
    assert answer.is_success, answer.text
    if events:
        report(daemon, body["id"], *events)
    return str(body["id"])


def every_state(daemon: ServedDaemon) -> dict[str, str]:
    """Report a job in each state, and return their ids by state. One is stalled, and fails later."""
    layers = [
        {"id": str(n), "name": f"Layer {n}", "current": 4_000_000 * n, "total": 20_000_000, "unit": "B"}
        for n in range(1, 5)
    ]
    ids = {
        "queued": job(daemon, "docker pull postgres:17", kind="docker", host="build-7"),
        "completed": job(
            daemon,
            "restic backup /home",
            started(),
            progress("Scanning", 0, 0),
            progress("Uploading", 841_000_000, 841_000_000, unit="B"),
            completed(output_path="https://example.org/snapshots/1f9a"),
            kind="restic",
        ),
        "failed": job(
            daemon,
            "pg_dump --format=custom orders",
            started(),
            progress("Dumping table orders.line_items", 41, 60),
            logged("pg_dump: dumping contents of table public.line_items"),
            logged("pg_dump: error: server closed the connection unexpectedly", "stderr"),
            failed("pg_dump failed with exit status 1: server closed the connection unexpectedly"),
            kind="pg_dump",
        ),
        "cancelled": job(
            daemon,
            "rsync -a /srv/media backup:/srv/media",
            started(),
            progress("media/2026/holiday.mov", 12_000_000, 90_000_000, unit="B"),
            {"type": "status_change", "data": {"new_status": "cancelled"}},
            kind="rsync",
            host="media",
        ),
        "epochs": job(
            daemon, "python train.py --epochs 40", started(), progress("Epoch 12", 12, 40), kind="python", host="pi"
        ),
        "open_ended": job(
            daemon, "tar cf - /var/lib | ssh nas", started(), progress("Archiving", 0, 0), kind="tar", host="nas"
        ),
        "japanese": job(
            daemon, "見積書_2026年12月_最終版.pdf", started(), progress("文字を認識しています", 3, 8), kind="pdf"
        ),
        "tasks": job(
            daemon,
            "docker compose pull",
            started(),
            progress("Pulling", 0, 0, unit="B", phase="Pulling", tasks=layers),
            kind="docker",
            host="build-7",
        ),
    }
    lines = [COLOURS, "collected 480 items", *(f"tests/test_{n}.py::test_orders PASSED" for n in range(1, 60))]
    ids["running"] = job(
        daemon,
        "ffmpeg -i holiday.mov -c:v libx265 -crf 24 -preset slow holiday.mkv",
        started(),
        progress("Reading", 1, 3, phase="Reading"),
        logged("\n".join(lines)),
        logged("\033[33m[hevc @ 0x5581] warning: deprecated pixel format\033[0m", "stderr"),
        progress("Encoding", 36_400_000, 91_000_000, unit="B", phase="Encoding", eta_seconds=372),
        kind="ffmpeg",
        host="media",
    )
    ids["stalled"] = stalled(daemon, STALLED_AFTER)
    return ids


def stalled(daemon: ServedDaemon, lease: float) -> str:
    """Report a job, wait until it is stalled, and return its id. It fails after three times the lease."""
    steps = [started(), progress("/srv/www", 9, 20)]
    job_id = job(daemon, "borg create ::nightly /srv", *steps, kind="borg", lease_seconds=lease)
    until(lambda: daemon.job(job_id)["progress"].get("stalled", False))
    return job_id


def many(daemon: ServedDaemon, number: int) -> None:
    """Report that many running jobs on several hosts, in one request."""
    events = list[Event]()
    for n in range(number):
        job_id = str(uuid.uuid4())
        labels = {"host": HOSTS[n % len(HOSTS)]}
        data = {"name": f"encode part-{n:05}.mov", "kind": "ffmpeg", "labels": labels, "total_steps": 100}
        for event in ({"type": "job_created", "data": data}, started(), progress("Encoding", n % 97, 100)):
            events.append({"job_id": job_id, **event})
    for first in range(0, len(events), 3000):
        lines = "".join(json.dumps(event) + "\n" for event in events[first : first + 3000])
        headers = {"Content-Type": "application/x-ndjson"}
        answer = daemon.request("POST", "/api/events", content=lines, headers=headers)
        assert answer.is_success, answer.text
