"""`report` and `submit` of progressd.js in Node, against a real daemon."""

import json
import subprocess
from pathlib import Path

from progressd.http.static_files import WEBUI
from support import keys
from support.serving import served_daemon
from support.waiting import PATIENCE

SCRIPT = Path(__file__).parent / "produce.mjs"
CONFIG = """
[auth]
required = true

[pipelines.copy]
command = ["cp", "{input}", "{output}"]
"""


def test_a_program_reports_and_submits(tmp_path: Path) -> None:
    key = keys.add(tmp_path / "state" / "keys.json", "node", "read", "write")
    with served_daemon(tmp_path / "state", config=CONFIG) as daemon:
        command = ["node", str(SCRIPT), (WEBUI / "progressd.js").as_uri(), daemon.url, key]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout)
        get = {"headers": keys.bearer(key)}
        job, failing = (daemon.request("GET", f"/api/jobs/{said[name]}", **get).json() for name in ("job", "failing"))
        assert (job["status"], job["name"], job["labels"]) == ("completed", "Import", {"team": "a"})
        assert job["output_path"] == "https://files.example/report.zip"
        assert [(task["id"], task["current"]) for task in job["progress"]["tasks"]] == [("a", 2), ("b", 0)]
        log = daemon.request("GET", f"/api/jobs/{said['job']}/log", **get).text
        assert log.splitlines() == [f"line {number}" for number in range(1, 101)]
        assert (failing["status"], failing["error"]) == ("failed", "The disk is full.")
        assert said["few"]
        assert said["refused"] == ["unauthorized", True]
        assert said["cancelled"] == 409
        assert daemon.request("GET", f"/api/jobs/{said['submitted']}", **get).json()["pipeline"] == "copy"
