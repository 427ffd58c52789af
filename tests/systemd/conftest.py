"""One machine for all tests of a module."""

import os
from collections.abc import Iterator

import pytest
from machine import CannotBoot, Machine, booted


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine as one is after the installation: with the units and the user, and nothing enabled or started."""
    try:
        with booted() as machine:
            machine.run("sh", "-c", "cp /opt/project/systemd/progressd*.service /etc/systemd/system/")
            machine.run("sh", "-c", "cp /opt/project/systemd/progressd*.socket /etc/systemd/system/")
            machine.run("systemd-sysusers", "/opt/project/systemd/progressd.sysusers.conf")
            machine.run("systemctl", "daemon-reload")
            yield machine
    except CannotBoot as reason:
        if os.environ.get("SYSTEMD_TESTS") == "required":
            raise
        pytest.skip(f"no systemd can be booted: {reason}")
