"""One machine for all tests, reset for each module."""

import os
from collections.abc import Iterator

import pytest
from support.keys import SECRET
from support.machine import CannotBoot, Machine, booted

USED = "/etc/progressd /etc/credstore /etc/systemd/system/progressd* /var/lib/progressd* /run/progressd*"


@pytest.fixture(scope="session")
def booted_machine() -> Iterator[Machine]:
    try:
        with booted() as machine:
            yield machine
            found = SECRET.search(machine.run("journalctl", "--output=export"))
            assert found is None, f"a secret is in the journal: {found}"
    except CannotBoot as reason:
        if os.environ.get("SYSTEMD_TESTS") == "required":
            raise
        pytest.skip(f"no systemd can be booted: {reason}")


@pytest.fixture(scope="module")
def bare_machine(booted_machine: Machine) -> Iterator[Machine]:
    """A machine with the program only."""
    yield booted_machine
    booted_machine.run("systemctl", "stop", "progressd*.socket", "progressd*.service")
    booted_machine.run("sh", "-c", f"rm -rf {USED}")
    booted_machine.run("systemctl", "daemon-reload")
    booted_machine.run("systemctl", "reset-failed")


@pytest.fixture(scope="module")
def machine(bare_machine: Machine) -> Machine:
    """A machine with the units and the user; nothing is enabled or started."""
    bare_machine.run("sh", "-c", "cp /opt/project/systemd/*.service /opt/project/systemd/*.socket /etc/systemd/system/")
    bare_machine.run("systemd-sysusers", "/opt/project/systemd/progressd.sysusers.conf")
    bare_machine.run("systemctl", "daemon-reload")
    return bare_machine
