"""The documented curl commands, and a script that polls with requests."""

import gzip
import json
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE, until

COPY = """
[pipelines.copy]
command = ["cp", "{input}", "{output}"]
accept = ["*/*"]
output = "copy.txt"
"""

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: str, given: str | None = None, where: Path | None = None) -> str:
    """Run curl, and return its output."""
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", str(PATIENCE), *arguments]
    done = subprocess.run(
        command, input=given, cwd=where, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    assert done.returncode == 0, done
    return done.stdout


@needs_curl
def test_curl_registers_and_reports_a_job(served: ServedDaemon) -> None:
    job = curl(f"{served.url}/api/jobs", "-d", '{"kind": "backup"}').split('"')[3]  # as `cut -d '"' -f 4`
    events = f"{served.url}/api/jobs/{job}/events"
    step = {"current_step": 1, "total_steps": 3, "step_name": "Tape 1"}
    assert json.loads(curl(events, "-d", json.dumps({"type": "progress", "data": step})))["ok"]
    [seen] = json.loads(curl(f"{served.url}/api/jobs?limit=1"))["jobs"]
    assert (seen["id"], seen["status"], seen["progress"]["step_name"]) == (job, "processing", "Tape 1")
    assert json.loads(curl(events, "-d", '{"type": "completed"}'))["ok"]
    assert '"type":"completed"' in curl("-N", events)
    assert "404" in curl("-o", "/dev/null", "-w", "%{http_code}", f"{served.url}/api/jobs/{uuid.uuid4()}")


@needs_curl
def test_curl_streams_lines(served: ServedDaemon) -> None:
    job = json.loads(curl(f"{served.url}/api/jobs", "-d", '{"kind": "backup"}'))["id"]
    lines = [{"type": "progress", "data": {"current_step": step, "total_steps": 9}} for step in range(1, 10)]
    said = "".join(json.dumps(line) + "\n" for line in [*lines, {"type": "completed"}])
    how = ("-NT", "-", "-X", "POST", "-H", "Content-Type: application/x-ndjson")
    answers = curl(*how, f"{served.url}/api/jobs/{job}/events", given=said).splitlines()
    assert [json.loads(answer)["ok"] for answer in answers] == [True] * 10
    assert json.loads(curl("--compressed", f"{served.url}/api/jobs/{job}"))["status"] == "completed"


@needs_curl
def test_curl_submits_a_file_and_downloads_the_result(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear all")
    with served_daemon(tmp_path / "state", config=COPY) as daemon:
        job = json.loads(curl("-F", "file=@letter.txt", f"{daemon.url}/api/convert?pipeline=copy", where=tmp_path))
        read = f"{daemon.url}/api/jobs/{job['job_id']}"
        until(lambda: json.loads(curl(read))["status"] == "completed")
        fetched = tmp_path / "fetched"
        fetched.mkdir()
        curl("-OJ", f"{read}/download", where=fetched)
        assert (fetched / "letter.txt").read_text() == "Dear all"


def test_a_script_polls_until_the_job_ends(served: ServedDaemon) -> None:
    with requests.Session() as session:
        session.trust_env = False

        def ask(method: str, path: str, **how: Any) -> requests.Response:
            return session.request(method, served.url + path, timeout=PATIENCE, **how)

        made = ask("POST", "/api/jobs", json={"kind": "backup", "options": {"text": "x" * 30_000}})
        assert made.status_code == 201
        path = f"/api/jobs/{made.json()['id']}"
        first = ask("GET", path)
        assert (first.json()["status"], first.headers["Content-Encoding"]) == ("queued", "gzip")
        assert int(first.headers["Content-Length"]) == len(gzip.compress(first.content, 3, mtime=0))
        known = {"If-None-Match": first.headers["ETag"]}
        assert [ask("GET", path, headers=known).status_code for _ in range(5)] == [304] * 5
        for event in ({"type": "progress", "data": {"current_step": 1, "total_steps": 1}}, {"type": "completed"}):
            assert ask("POST", f"{path}/events", json=event).json()["ok"]
        assert ask("GET", path, headers=known).json()["status"] == "completed"
        waited = ask("GET", path, params={"since": first.json()["cursor"], "wait": "20"})
        assert waited.json()["status"] == "completed"
        assert "error" in ask("GET", f"/api/jobs/{uuid.uuid4()}").json()
