"""`progressd install` and `uninstall` on a fresh machine."""

from support.daemon import registered
from support.machine import Machine
from support.samples import ID

PATHS = ("etc/systemd/system/progressd.service", "etc/sysusers.d/progressd.conf", "etc/progressd", "var/lib/progressd")

NOBODY = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")


def present(machine: Machine) -> list[str]:
    return [path for path in PATHS if (machine.root / path).exists()]


def test_nothing_happens_without_confirmation(bare_machine: Machine) -> None:
    bare_machine.completed("userdel", "progressd")
    said = bare_machine.run("progressd", "install", "--dry-run")
    assert said.startswith("This will:\n  - write /etc/systemd/system/progressd-ingest.socket\n")
    assert "create the system user progressd" in said
    rejected = bare_machine.completed("progressd", "install", text="n\n")
    assert rejected.returncode == 1
    assert said.strip() in rejected.stdout
    assert present(bare_machine) == []


def test_install_is_idempotent_and_keeps_the_data(bare_machine: Machine) -> None:
    run = bare_machine.run
    run("progressd", "install", text="y\n")
    assert run("systemctl", "is-enabled", "progressd.service", "progressd.socket").split() == ["enabled", "enabled"]
    assert bare_machine.report(registered(ID))["ok"]
    pid = bare_machine.state("progressd.service")["MainPID"]

    assert run("progressd", "install") == "Nothing to do: progressd is installed and running.\n"
    assert bare_machine.state("progressd.service")["MainPID"] == pid

    diagnosis = run("progressd", "doctor")
    assert "\nwrong" not in diagnosis
    seen = bare_machine.completed(*NOBODY, "progressd", "doctor")
    assert (seen.returncode, seen.stderr) == (1, "")
    assert "   ok  port 8080 of 127.0.0.1 is in use, as expected" in seen.stdout
    assert "wrong  nobody cannot write to /var/lib/progressd, which belongs to progressd: choose" in seen.stdout

    bare_machine.write("/etc/systemd/system/progressd.socket", "[Socket]\nListenStream=127.0.0.1:1\n")
    mended = run("progressd", "install", "--yes")
    assert "write /etc/systemd/system/progressd.socket" in mended
    assert "progressd.service," not in mended

    run("systemctl", "enable", "progressd@8081.socket")
    run("progressd", "uninstall", "--yes")
    assert not list((bare_machine.root / "etc/systemd/system").glob("*.wants/progressd*"))
    assert present(bare_machine) == ["etc/progressd", "var/lib/progressd"]
    assert bare_machine.completed("systemctl", "cat", "progressd.service").returncode == 1
    assert run("progressd", "uninstall") == "Nothing to do: progressd is not installed as a service.\n"

    run("progressd", "install", "--yes")
    assert bare_machine.request("GET", f"/api/jobs/{ID}").status == 200
    run("progressd", "uninstall", "--delete-data", "--yes")
    assert present(bare_machine) == []
    assert not (bare_machine.root / "run/progressd").exists()
    assert bare_machine.completed("id", "progressd").returncode == 1
    assert bare_machine.run("systemctl", "--failed", "--quiet") == ""


def test_doctor_and_purge_follow_a_changed_socket(bare_machine: Machine) -> None:
    run, edit = bare_machine.run, "etc/systemd/system/progressd.socket.d"
    run("progressd", "install", "--yes")
    bare_machine.write(f"/{edit}/override.conf", "[Socket]\nListenStream=\nListenStream=[::1]:8090\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "stop", "progressd.service")
    run("systemctl", "restart", "progressd.socket")
    for _ in ("systemd listens", "the daemon listens"):
        diagnosis = run("progressd", "doctor")
        assert "port 8090 of ::1 is in use, as expected\n" in diagnosis
        run("systemctl", "start", "progressd.service")
    asked = bare_machine.completed("progressd", "doctor", "--port", "8080")
    assert "wrong  nothing listens on port 8080 of 127.0.0.1" in asked.stdout

    run("progressd", "uninstall", "--yes")
    assert (bare_machine.root / edit).exists()
    said = run("progressd", "uninstall", "--delete-data", "--yes")
    assert f"delete /{edit} and everything in it" in said
    assert not (bare_machine.root / edit).exists()


def test_a_program_hidden_from_the_service_is_rejected(bare_machine: Machine) -> None:
    bare_machine.run("mkdir", "-p", "/root/bin")
    bare_machine.run("cp", "/opt/progressd/bin/progressd", "/root/bin/progressd")
    rejected = bare_machine.completed("/root/bin/progressd", "install", "--yes")
    assert rejected.stderr.startswith(
        "Error: the service cannot run /root/bin/progressd, because its sandbox hides /root: "
    )


def test_install_needs_root(bare_machine: Machine) -> None:
    rejected = bare_machine.completed(*NOBODY, "progressd", "install", "--yes")
    assert rejected.stderr == "Error: only root can do this: put sudo before the command\n"
