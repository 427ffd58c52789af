"""The units in a real systemd: start, sandbox, and access to the socket."""

import json
import shutil
from collections.abc import Iterator

import pikepdf
import pytest
from support.daemon import registered
from support.machine import PROJECT, Machine
from support.samples import ID, job_id


@pytest.fixture(autouse=True)
def _stopped(machine: Machine) -> Iterator[None]:
    yield
    machine.run("systemctl", "stop", "progressd*.socket", "progressd*.service")
    machine.run("systemctl", "reset-failed", check=False)


def test_the_units_are_valid(machine: Machine) -> None:
    single = ["progressd.service", "progressd.socket", "progressd-ingest.socket"]
    units = [*single, *(unit.replace(".", "@8081.") for unit in single)]
    done = machine.completed("systemd-analyze", "verify", *units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_sandbox_is_tight(machine: Machine) -> None:
    done = machine.completed(
        "systemd-analyze", "security", "--threshold=12", "progressd.service", "progressd@8081.service"
    )
    assert done.returncode == 0, done.stdout


def test_the_service_is_active_once_it_is_ready(machine: Machine) -> None:
    machine.run("systemctl", "start", "progressd.service")
    assert machine.request("GET", "/api/health/ready").status == 200
    assert machine.report(registered(ID))["ok"]
    assert "ready url=" in machine.log("progressd.service")
    state = machine.state("progressd.service")
    assert (state["ActiveState"], state["SubState"], state["NRestarts"]) == ("active", "running", "0")
    assert machine.run("stat", "-c", "%U:%G %a", f"/proc/{state['MainPID']}").startswith("progressd:progressd")
    assert machine.run("stat", "-c", "%U:%G %a", "/var/lib/progressd").strip() == "progressd:progressd 700"


def test_instances_run_side_by_side(machine: Machine) -> None:
    other = job_id(8081)
    machine.write("/etc/progressd/8081.toml", "[pipelines.copy]\ncommand = ['cp', '{input}', '{output}']\n")
    machine.run("systemctl", "start", "progressd.socket", "progressd@8081.socket")
    assert machine.report(registered(other), "/run/progressd-8081/ingest.sock")["ok"]
    assert machine.request("GET", f"/api/jobs/{other}", port=8081).status == 200
    assert machine.request("GET", f"/api/jobs/{other}").status == 404
    assert "copy" in machine.request("GET", "/api/health", port=8081).json["pipelines"]


def test_the_template_differs_only_by_the_instance() -> None:
    single, template = (
        [line for line in (PROJECT / "systemd" / name).read_text().splitlines() if line and not line.startswith("#")]
        for name in ("progressd.service", "progressd@.service")
    )
    differing = [line for line in template if line not in single]
    assert len(single) == len(template)
    assert all("%i" in line for line in differing)


def test_the_first_connection_starts_the_daemon(machine: Machine) -> None:
    machine.run("systemctl", "start", "progressd.socket")
    assert machine.state("progressd.service")["ActiveState"] == "inactive"
    assert machine.request("GET", "/api/health/ready").status == 200
    assert machine.state("progressd.service")["ActiveState"] == "active"


def test_the_address_can_be_changed_as_documented(machine: Machine) -> None:
    machine.run("systemctl", "start", "progressd.socket", "progressd.service")
    override = "/etc/systemd/system/progressd.socket.d/override.conf"
    machine.write(override, "[Socket]\nListenStream=\nListenStream=127.0.0.1:8090\n")
    machine.run("systemctl", "daemon-reload")  # as `systemctl edit` does
    machine.run("systemctl", "stop", "progressd.socket", "progressd-ingest.socket", "progressd")
    with pytest.raises(ConnectionRefusedError):
        machine.connect_unix()  # otherwise a producer would start the service before the sockets
    machine.run("systemctl", "start", "progressd.socket", "progressd")
    assert machine.request("GET", "/api/health/ready", port=8090).status == 200
    assert machine.report(registered(ID))["ok"]
    with pytest.raises(ConnectionRefusedError):
        machine.connect()
    machine.run("rm", "-r", "/etc/systemd/system/progressd.socket.d")
    machine.run("systemctl", "daemon-reload")


def test_the_first_producer_in_the_group_starts_it(machine: Machine) -> None:
    machine.run("systemctl", "start", "progressd.socket")
    assert machine.run("stat", "-c", "%U:%G %a", "/run/progressd/ingest.sock").strip() == "progressd:progressd 660"
    report = [
        "/opt/progressd/bin/python",
        "-c",
        "import socket, sys\nwith socket.socket(1) as one:\n    one.connect('/run/progressd/ingest.sock')\n"
        "    one.sendall(sys.stdin.buffer.read())\n    print(one.recv(1000).decode())",
    ]
    event = json.dumps({"ref": 1, **registered(ID)}) + "\n"
    nobody = ["setpriv", "--reuid", "nobody", "--regid", "nogroup"]
    stranger = machine.completed(*nobody, "--clear-groups", *report, text=event)
    assert "PermissionError" in stranger.stderr
    assert machine.state("progressd.service")["ActiveState"] == "inactive"
    assert json.loads(machine.run(*nobody, "--groups", "progressd", *report, text=event))["ok"]
    assert machine.request("GET", f"/api/jobs/{ID}").json["status"] == "queued"


def test_limits_apply_in_the_sandbox(machine: Machine) -> None:
    shown = "'cat /proc/$$/limits /proc/$$/oom_score_adj > \"$1\"', 'sh', '{output}', '{input}'"
    machine.write(
        "/etc/progressd/8082.toml",
        f"[pipelines.show]\ncommand = ['sh', '-c', {shown}]\naccept = ['*/*']\nmax_open_files = 77\n",
    )
    machine.run("systemctl", "start", "progressd@8082.service")
    machine.run("progressd", "submit", "/etc/hosts", "--url", "http://127.0.0.1:8082", "--pipeline", "show", "--watch")
    [job] = machine.request("GET", "/api/jobs?kind=show", port=8082).json["jobs"]
    lines = machine.request("GET", job["output_path"], port=8082).body.decode().splitlines()
    assert any(line.split()[:5] == ["Max", "open", "files", "77", "77"] for line in lines)
    assert any(line.split()[:5] == ["Max", "cpu", "time", "86400", "86405"] for line in lines)
    assert lines[-1] == "500"


def test_a_cancelled_job_leaves_no_sandboxed_process(machine: Machine) -> None:
    leaves = "'timeout 1000 sleep 1000 & setsid sleep 1000 & (env -i setsid sleep 1000 &); sleep 1000 & wait'"
    machine.write(
        "/etc/progressd/8093.toml",
        f"[pipelines.leave]\ncommand = ['sh', '-c', {leaves}, '{{input}}']\naccept = ['*/*']\n",
    )
    machine.run("systemctl", "start", "progressd@8093.service")
    url = ["--url", "http://127.0.0.1:8093"]
    job_id = machine.run("progressd", "submit", "/etc/hosts", *url, "--pipeline", "leave").split()[-1]

    def sleeping() -> int:
        return len(machine.run("pgrep", "-x", "sleep", check=False).split())

    machine.eventually(lambda: sleeping() == 4)
    machine.run("progressd", "cancel", job_id, *url)
    machine.eventually(lambda: sleeping() == 0)  # also the one without environment and parent, due to its cgroup
    machine.eventually(lambda: "ended the processes of a job" in machine.log("progressd@8093.service"))
    assert machine.run("find", "/sys/fs/cgroup/system.slice", "-name", f"progressd-*{job_id}") == ""
    machine.run("systemctl", "kill", "--kill-whom=main", "progressd@8093.service")
    machine.eventually(lambda: machine.state("progressd@8093.service")["ActiveState"] == "inactive")
    assert "cannot" not in machine.log("progressd@8093.service")


def test_a_scan_is_converted_in_the_sandbox(machine: Machine) -> None:
    machine.run("systemctl", "start", "progressd.service")
    options = [
        "-o",
        "advanced=true",
        "-o",
        f"ocr={'true' if shutil.which('tesseract') else 'false'}",
        "-o",
        "dpi=75",
        "-o",
        "upscale=false",
    ]
    with pikepdf.open(PROJECT / "daemon/progressd_pdf/scan/sample-scan.pdf") as scan:
        del scan.pages[1:]
        scan.save(machine.root / "opt/page.pdf")
    machine.run("progressd", "submit", "/opt/page.pdf", *options, "--watch")
    [job] = machine.request("GET", "/api/jobs?kind=pdf").json["jobs"]
    assert machine.request("GET", job["output_path"]).body.startswith(b"%PDF-")
