"""Install the peers and compile the load client, once. Git ignores the results."""

import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
PEERS: Final = HERE / "peers"
BUILT: Final = HERE / ".build"  # compiled programs, Node's modules, the store with a million jobs
PYTHON: Final = HERE / ".venv" / "bin" / "python"  # of the peers in Python
NODE_MODULES: Final = BUILT / "node" / "node_modules"
NCHAN: Final = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


class NotInstalled(Exception):
    """A dependency is missing, and the benchmark cannot install it."""


def install(servers: Collection[str]) -> None:
    """Install what these servers need. Raises NotInstalled."""
    BUILT.mkdir(exist_ok=True)
    _debian("gcc", found=shutil.which("gcc") is not None)
    _compile(HERE / "load" / "load.c", BUILT / "load")
    if "floor" in servers:
        _compile(PEERS / "floor.c", BUILT / "floor")
    if "nchan" in servers:
        _debian("nginx", "libnginx-mod-nchan", found=NCHAN.exists())
    if "ws" in servers:
        _debian("nodejs", "npm", found=shutil.which("node") is not None and shutil.which("npm") is not None)
        if not (NODE_MODULES / "ws").exists():
            _run("npm", "install", "--silent", "--no-fund", "--prefix", str(NODE_MODULES.parent), "ws")
    if not {"websockets", "starlette"}.isdisjoint(servers):
        _python()


def _debian(*packages: str, found: bool) -> None:
    if found:
        return
    if os.geteuid() != 0:
        raise NotInstalled(
            f"the benchmark needs Debian's {' and '.join(packages)}: apt-get install {' '.join(packages)}"
        )
    _run("apt-get", "update", "--quiet=2")
    # RUNLEVEL=1 prevents Debian's scripts from starting a server on port 80.
    _run("apt-get", "install", "--quiet=2", "--yes", *packages, RUNLEVEL="1", DEBIAN_FRONTEND="noninteractive")


def _python() -> None:
    wanted = PEERS / "requirements.txt"
    done = PYTHON.parent / ".installed"
    if done.exists() and done.read_text() == wanted.read_text():
        return
    _run(sys.executable, "-m", "venv", str(PYTHON.parent.parent))
    _run(str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "-r", str(wanted))
    done.write_text(wanted.read_text())


def _compile(source: Path, program: Path) -> None:
    newest = max(file.stat().st_mtime for file in source.parent.glob("*.[ch]"))
    if not program.exists() or program.stat().st_mtime < newest:
        _run("gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source))


def _run(*command: str, **environ: str) -> None:
    print("+", " ".join(command), file=sys.stderr)
    if subprocess.run(command, env={**os.environ, **environ}, stdout=sys.stderr).returncode:
        raise NotInstalled(f"{command[0]} failed (see its output above)")
