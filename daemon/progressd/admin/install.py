"""Install progressd as a systemd service, or remove it, in steps. Each step has a description. Completed steps are
skipped, so installing twice does no harm.
"""

import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from progressd.core.errors import InstallationFailed

SHIPPED: Final = Path(__file__).parents[1] / "units"
PLACEHOLDER: Final = "/usr/local/bin/progressd"  # path of the program in the shipped units
UNIT_DIRECTORY: Final = Path("/etc/systemd/system")
SYSUSERS: Final = Path("/etc/sysusers.d/progressd.conf")
CONFIG: Final = Path("/etc/progressd/progressd.toml")
STATE: Final = Path("/var/lib/progressd")
RUNTIME: Final = Path("/run/progressd")
USER: Final = "progressd"
RELOAD: Final = "reload the units of systemd"
ENABLED: Final = ("progressd.socket", "progressd-ingest.socket", "progressd.service")
HIDDEN: Final = (Path("/home"), Path("/root"), Path("/tmp"), Path("/run/user"))  # noqa: S108, which the sandbox of the service hides

_LISTEN = re.compile(r"^(?:Listen=)?(\S+):([0-9]+) \(Stream\)$", re.MULTILINE)


class Step(NamedTuple):
    """A step and its description."""

    description: str
    run: Callable[[], object]


def installing(program: Path, sample: str) -> Iterator[Step]:
    """Yield the steps that install `program` as the service. `sample`: the config file to write if none exists."""
    changed = False
    for path, text in _files(program):
        if not path.is_file() or path.read_text() != text:
            changed |= path.parent == UNIT_DIRECTORY
            yield Step(f"write {path}", partial(_write, path, text))
    if not _user_exists():
        yield Step(f"create the system user {USER}", partial(run, "systemd-sysusers", str(SYSUSERS)))
    if not CONFIG.exists():
        yield Step(f"write {CONFIG}, with the default of every setting", partial(_write, CONFIG, sample))
    running = _is("is-active", "progressd.service")
    if changed:
        yield Step(RELOAD, partial(run, "systemctl", "daemon-reload"))
        if running:
            yield Step(
                "restart the service with the new units", partial(run, "systemctl", "restart", "progressd.service")
            )
    if missing := [unit for unit in ENABLED if not _is("is-enabled", unit) or not _is("is-active", unit)]:
        yield Step(
            f"start {', '.join(missing)}, now and at boot", partial(run, "systemctl", "enable", "--now", *missing)
        )


def uninstalling(*, data: bool) -> Iterator[Step]:
    """Yield the steps that remove everything except the jobs and the config file. `data`: remove these, too."""
    units = [path for path, _ in _files(Path(PLACEHOLDER)) if path.parent == UNIT_DIRECTORY and path.exists()]
    edited = _drop_ins() if data else []
    if units:
        names = [path.name for path in units]
        yield Step("stop the daemon, and do not start it at boot", partial(_disable, names))
        for path in units:
            yield Step(f"delete {path}", path.unlink)
    for directory in edited:
        yield Step(f"delete {directory} and everything in it", partial(shutil.rmtree, directory))
    if units or edited:
        yield Step(RELOAD, partial(run, "systemctl", "daemon-reload"))
    if SYSUSERS.exists():
        yield Step(f"delete {SYSUSERS}", SYSUSERS.unlink)
    if data:
        # instances of the template unit are named by port
        own = [one for path in (STATE, RUNTIME) for one in (path, *sorted(path.parent.glob(f"{path.name}-[0-9]*")))]
        for directory in (*own, CONFIG.parent):
            if directory.exists():
                yield Step(f"delete {directory} and everything in it", partial(shutil.rmtree, directory))
        if _user_exists():
            yield Step(f"delete the system user {USER}", partial(run, "userdel", USER))


def run(*command: str) -> None:
    """Run a program. Raises InstallationFailed with its error output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallationFailed(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")


def socket_addresses() -> list[tuple[str, int]]:
    """Return the hosts and ports on which systemd listens for the service."""
    socket = "progressd.socket"
    if not _is("is-active", socket):
        return []
    shown = _shown("--property=Listen", socket)
    return [(host.strip("[]"), int(port)) for host, port in _LISTEN.findall(shown)]


def pending_settings() -> str:
    """Return the status text of the running service about pending settings; "" if all settings are in effect."""
    shown = _shown("--property=StatusText", "--value", "progressd.service")
    return shown.rpartition("; jobs: ")[0]


def require_possible(program: Path) -> None:
    """Raise InstallationFailed if `program` cannot run as the service."""
    if not shutil.which("systemctl") or not Path("/run/systemd/system").is_dir():
        raise InstallationFailed("systemd is not running here: start the daemon with progressd serve")
    for hidden in HIDDEN:
        if program.resolve().is_relative_to(hidden):
            raise InstallationFailed(
                f"the service cannot run {program.resolve()}, because its sandbox hides {hidden}: install progressd "
                "for all users, such as with sudo pipx install --global"
            )


def _files(program: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path and text of each file to install."""
    for shipped in sorted(SHIPPED.iterdir()):
        place = SYSUSERS if shipped.name == "progressd.sysusers.conf" else UNIT_DIRECTORY / shipped.name
        yield place, shipped.read_text().replace(f"={PLACEHOLDER} ", f"={program} ")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def _drop_ins() -> list[Path]:
    """Return the directories of `systemctl edit` for the units and their instances."""
    patterns = {
        path.name.replace("@.", "@*.") for path, _ in _files(Path(PLACEHOLDER)) if path.parent == UNIT_DIRECTORY
    }
    return sorted(found for pattern in patterns for found in UNIT_DIRECTORY.glob(f"{pattern}.d"))


def _user_exists() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _is(question: str, unit: str) -> bool:
    if shutil.which("systemctl") is None:
        return False
    return subprocess.run(("systemctl", "--quiet", question, unit), capture_output=True, check=False).returncode == 0


def _shown(*arguments: str) -> str:
    return subprocess.run(("systemctl", "show", *arguments), capture_output=True, text=True, check=False).stdout


def _disable(units: list[str]) -> None:
    """Stop and disable units and their instances. Sockets are stopped first: they would start the daemon again."""
    for suffix in (".socket", ".service"):
        run("systemctl", "stop", *(name.replace("@.", "@*.") for name in units if name.endswith(suffix)))
    run("systemctl", "disable", *units)
