"""The machine and the versions of a benchmark."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from benchmarks.paths import NODE_MODULES, PYTHON


def machine() -> str:
    """Return processor, memory and system as text."""
    [processor] = set(re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())) or {"unknown processor"}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return (
        f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, {system}, Linux {platform.release()}, "
        f"TCP with {congestion}"
    )


def versions() -> str:
    """Return the versions of everything that is installed, as text."""
    return ", ".join(f"{name} {number}" for name, number in _versions() if number)


def load_average() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", platform.python_version()
    for name in ("progressd", "trio", "trio-websocket"):
        yield name, version(name)
    yield "nginx", _printed("nginx", "-v").rpartition("/")[2]
    yield "Nchan", _printed("dpkg-query", "--show", "--showformat=${Version}", "libnginx-mod-nchan")
    for name in ("websockets", "starlette", "uvicorn", "uvloop"):
        yield name, _printed(str(PYTHON), "-c", f"from importlib.metadata import version; print(version({name!r}))")
    yield "Node", _printed("node", "--version").removeprefix("v")
    package = NODE_MODULES / "ws" / "package.json"
    yield "ws", json.loads(package.read_text())["version"] if package.exists() else ""


def _printed(*command: str) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""  # not installed, as its server is not measured
    return done.stdout.strip()
