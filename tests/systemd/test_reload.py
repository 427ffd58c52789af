"""systemctl reload waits for the new settings, disconnects no client, and keeps the old settings after an error."""

import json
from collections.abc import Iterator

import pytest
from support.machine import Machine

CONFIG = "/etc/progressd/progressd.toml"


@pytest.fixture(autouse=True)
def _started(machine: Machine) -> Iterator[None]:
    machine.run("systemctl", "start", "progressd.service")
    yield
    machine.run("systemctl", "stop", "progressd.service")


def pipelines(machine: Machine) -> set[str]:
    return set(machine.request("GET", "/api/health").json["pipelines"])


def test_reload(machine: Machine) -> None:
    pid = machine.state("progressd.service")["MainPID"]
    with machine.connect() as watcher:
        watcher.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert watcher.recv(1000).startswith(b"HTTP/1.1 200")

        machine.write(CONFIG, '[pipelines.new]\ncommand = ["true", "{input}"]\n[log]\nlevel = "debug"\n')
        machine.run("systemctl", "reload", "progressd.service")
        assert pipelines(machine) == {"pdf", "new"}
        assert 'changed="log.level, pipelines"' in machine.log("progressd.service")

        machine.write(CONFIG, "[limits]\nmax_conections = 1\n")
        machine.run("systemctl", "reload", "progressd.service")
        sentence = "unknown setting limits.max_conections"
        assert f'settings not reloaded error="{sentence}' in machine.log("progressd.service")
        assert pipelines(machine) == {"pdf", "new"}
        assert f"settings not reloaded: {sentence}" in machine.state("progressd.service")["StatusText"]

        machine.write(CONFIG, "[server]\nport = 8081\n")
        machine.run("systemctl", "reload", "progressd.service")
        assert pipelines(machine) == {"pdf"}
        assert "settings need a restart settings=server.port" in machine.log("progressd.service")
        waits = "settings wait for a restart: server.port"
        assert machine.state("progressd.service")["StatusText"].startswith(f"{waits}; jobs: ")
        assert f" note  the running service says: {waits}\n" in machine.completed("progressd", "doctor").stdout

        machine.request("POST", "/api/jobs", json.dumps({"kind": "scan"}).encode(), Content_Type="application/json")
        seen = b""
        while b"job_created" not in seen:
            more = watcher.recv(10000)
            assert more, seen
            seen += more
    state = machine.state("progressd.service")
    assert (state["MainPID"], state["ActiveState"]) == (pid, "active")
