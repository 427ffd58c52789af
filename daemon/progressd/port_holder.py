"""Who listens on a port of this machine, as far as one may know: proc(5), /proc/net/tcp and /proc/PID/fd."""

import ipaddress
import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

LISTENING: Final = "0A"  # TCP_LISTEN
COMMAND_MOST: Final = 60  # characters of a command line
WORD: Final = 8  # hexadecimal digits of an address that the kernel writes as one number

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Listener(NamedTuple):
    """A line of /proc/net/tcp."""

    address: Address
    port: int
    uid: int
    inode: int


def holder_of(host: str, port: int) -> str:
    """Whoever keeps others from listening there, such as "process 4711 (nginx: master process)"; "" if unknown.

    `host` is a numeric address. To whom the process may not be shown it is "a process of USER". Blocks.
    """
    wanted = ipaddress.ip_address(host.partition("%")[0])
    found = [
        one
        for one in _listeners()
        if one.port == port and (one.address == wanted or one.address.is_unspecified or wanted.is_unspecified)
    ]
    if not found:
        return ""
    processes = _processes({f"socket:[{one.inode}]" for one in found})
    pid = min(processes, key=lambda pid: (pid == 1, pid), default=None)  # systemd holds it for another
    if pid is not None:
        return f"process {pid} ({_command(pid)})"
    try:
        user = pwd.getpwuid(found[0].uid).pw_name
    except KeyError:
        user = f"the user {found[0].uid}"
    return f"a process of {user}"


def _listeners() -> Iterator[Listener]:
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # without IPv6 there is no such table
            for line in Path("/proc/self/net", name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING:
                    address, _, port = fields[1].partition(":")
                    yield Listener(_address(address), int(port, 16), int(fields[7]), int(fields[9]))


def _address(text: str) -> Address:
    """An address as the kernel writes it: words of 32 bits, each a number in the byte order of the machine."""
    words = [int(text[start : start + WORD], 16) for start in range(0, len(text), WORD)]
    return ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))


def _processes(links: set[str]) -> set[int]:
    """The processes that have one of these open, as far as one may look."""
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) in links:
                    found.add(int(process.name))
                    break
    return found


def _command(pid: int) -> str:
    command = ""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    printable = "".join(letter if letter.isprintable() else "?" for letter in command)
    return printable if len(printable) <= COMMAND_MOST else f"{printable[:COMMAND_MOST]}…"
