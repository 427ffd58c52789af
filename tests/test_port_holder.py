"""Who has a port, on real sockets; what is told to others than root is in tests/systemd/test_install."""

import ipaddress
import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd import port_holder
from progressd.port_holder import COMMAND_MOST, holder_of


@pytest.mark.parametrize(
    ("family", "listens", "asked"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_it_is_named_with_its_command(family: socket.AddressFamily, listens: str, asked: str) -> None:
    with socket.create_server((listens, 0), family=family) as server:
        named = holder_of(asked, server.getsockname()[1])
    assert named.startswith(f"process {os.getpid()} (")
    assert len(named) < COMMAND_MOST + 30


def test_it_may_be_another_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child = [sys.executable, "-c", "input()"]
        with subprocess.Popen(child, stdin=subprocess.PIPE, pass_fds=[server.fileno()]) as process:
            server.close()
            assert holder_of("127.0.0.1", port) == f"process {process.pid} ({' '.join(child)[:COMMAND_MOST]})"
            process.communicate(b"\n")


def test_of_who_does_not_listen_there_nothing_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert holder_of("127.0.0.2", server.getsockname()[1]) == ""
        assert holder_of("127.0.0.1", client.getsockname()[1]) == ""


@given(st.ip_addresses())
def test_addresses_are_read_as_the_kernel_writes_them(address: port_holder.Address) -> None:
    packed = address.packed
    words = [int.from_bytes(packed[start : start + 4], sys.byteorder) for start in range(0, len(packed), 4)]
    assert port_holder._address("".join(f"{word:08X}" for word in words)) == ipaddress.ip_address(packed)
