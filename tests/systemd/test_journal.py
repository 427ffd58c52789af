"""The daemon's log in a real journal."""

import json

from support.daemon import completed, failed, progress, registered
from support.machine import Machine
from support.samples import job_id

ID = job_id(4711)  # used by this test only


def entries(machine: Machine, *matches: str) -> list[dict[str, str]]:
    machine.run("journalctl", "--sync")
    lines = machine.run("journalctl", "--output", "json", *matches).splitlines()
    return [json.loads(line) for line in lines]


def test_the_journal_shows_one_job(machine: Machine) -> None:
    machine.run("systemctl", "start", "progressd.socket")
    other = job_id(4712)
    for event in [
        registered(ID),
        progress(ID, 1),
        registered(other),
        progress(other, 1),
        completed(other),
        failed(ID, "torn tape"),
    ]:
        answer = machine.report(event)
        assert answer["ok"], answer
    logged = entries(machine, f"JOB_ID={ID}")
    events = [(entry["MESSAGE"].partition(" job_id=")[0], entry.get("STATUS")) for entry in logged]
    assert events == [
        ("job created", None),
        ("job status changed", "processing"),
        ("job status changed", "failed"),
        ("job failed", None),
    ]
    assert {entry["_SYSTEMD_UNIT"] for entry in logged} == {"progressd.service"}
    assert (logged[-1]["ERROR"], logged[-1]["PRIORITY"]) == ("torn tape", "6")
    assert machine.run("journalctl", "--output", "cat", f"JOB_ID={other}").count("\n") == 3


def test_errors_have_their_priority(machine: Machine) -> None:
    pid = machine.state("progressd.service")["MainPID"]
    machine.write("/etc/progressd/progressd.toml", "[limits]\nmax_conections = 1\n")
    machine.run("systemctl", "reload", "progressd.service")
    [error] = entries(machine, "--priority", "err", f"_PID={pid}")
    assert error["MESSAGE"].startswith('settings not reloaded error="unknown setting')
    assert error["SYSLOG_IDENTIFIER"] == "progressd"


def test_a_stalled_journal_loses_nothing(machine: Machine) -> None:
    machine.run("systemctl", "start", "progressd.service")
    daemon, journal = (machine.state(unit)["MainPID"] for unit in ("progressd.service", "systemd-journald.service"))
    jobs = [job_id(number) for number in range(5000, 6500)]
    machine.run("kill", "-STOP", journal)
    try:
        with machine.connect_unix() as producer, producer.makefile("rw") as stream:
            stream.writelines(json.dumps({"ref": 1, **registered(job)}) + "\n" for job in jobs)
            stream.flush()
            assert all(json.loads(stream.readline())["ok"] for _ in jobs)
    finally:
        machine.run("kill", "-CONT", journal)
    assert machine.state("progressd.service")["MainPID"] == daemon
    last = f"JOB_ID={jobs[-1]}"
    machine.eventually(lambda: "job created" in machine.run("journalctl", "--output", "cat", last))
    assert {entry["JOB_ID"] for entry in entries(machine, f"_PID={daemon}", "KIND=job")} >= set(jobs)


def test_a_failed_start_is_an_error(machine: Machine) -> None:
    machine.run("systemctl", "stop", "progressd.socket", "progressd-ingest.socket", "progressd.service")
    machine.write("/etc/progressd/progressd.toml", "[limits]\nmax_conections = 2\n")
    failed_start = machine.completed("systemctl", "start", "progressd.service")
    assert failed_start.returncode == 1
    machine.run("systemctl", "stop", "progressd.service")  # stops the retries
    error, *_ = entries(machine, "--priority", "warning", "_SYSTEMD_UNIT=progressd.service", "--reverse")
    assert error["MESSAGE"].startswith("Error: unknown setting")
    assert error["PRIORITY"] == "3"
