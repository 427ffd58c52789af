"""Find problems that keep the daemon from working on this machine, and their remedies. Changes nothing."""

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, Literal, NamedTuple

from progressd.admin.maintenance import DATABASE, REPAIR_PROGRAM, require_readable
from progressd.auth.api_keys import read_keys
from progressd.auth.watch_tokens import secret_from
from progressd.config.settings import Settings
from progressd.core.errors import SettingsError
from progressd.net.bind import LISTENERS, require_keys
from progressd.net.tls import tls_context
from progressd.system.fs import user

MIN_FREE: Final = 1 << 30  # bytes on the disk
SPARE_DESCRIPTORS: Final = 256  # in addition to the descriptors of watchers and producers
TEST_WRITE: Final = 64 << 10  # bytes; the start of a daemon writes fewer
TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronized


class Finding(NamedTuple):
    """The result of a check. `bad`: the daemon does not work. `note`: it works only partly, or not for long."""

    grade: Literal["good", "note", "bad"]
    sentence: str


def diagnose(settings: Settings, held: Sequence[tuple[str, int]] = ()) -> Iterator[Finding]:
    """Check the requirements of the daemon. `held`: the hosts and ports on which systemd listens for the daemon."""
    running = _is_running(settings.state_dir)
    yield from _state_dir(settings.state_dir, running)
    yield from _store(settings.state_dir)
    usable = f"the certificate {settings.server.tls_cert} and its key are usable"
    yield from _started(lambda: tls_context(settings.server), usable if settings.server.tls_cert else "")
    yield from _started(lambda: read_keys(settings.auth.keys_file))
    if os.path.exists(settings.auth.token_secret_file):  # unlike Path.exists, it does not raise PermissionError
        yield from _started(lambda: secret_from(settings.auth.token_secret_file))
    for host, port in held or [(settings.server.host, settings.server.port)]:
        yield from _port(settings, host, port, running, held=bool(held))
    yield from _socket(settings.ingest.socket, running)
    yield from _disk(settings.state_dir)
    yield from _clock()
    yield from _tools(settings)
    yield from _descriptors(settings)


def _is_running(state_dir: Path) -> bool:
    """Return whether a daemon uses the state directory."""
    try:
        with (state_dir / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _started(step: Callable[[], object], good: str = "") -> Iterator[Finding]:
    """Do a step of the daemon's start."""
    try:
        step()
    except SettingsError as error:
        yield Finding("bad", str(error))
    else:
        if good:
            yield Finding("good", good)


def _state_dir(path: Path, running: bool) -> Iterator[Finding]:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if running:
        yield Finding("good", f"a daemon is running with the state directory {path}")
    elif not os.access(existing, os.W_OK | os.X_OK):
        owner, me = user(existing.stat().st_uid), user(os.geteuid())
        yield Finding(
            "bad",
            f"{me} cannot write to {existing}, which belongs to {owner}: choose another directory with --state-dir",
        )
    else:
        yield Finding("good", f"the state directory {path} is writable")


def _store(state_dir: Path) -> Iterator[Finding]:
    """Check whether the daemon can open the database, even if it runs as a different user."""
    if not state_dir.is_dir() or not os.access(state_dir, os.R_OK | os.X_OK):
        return
    path = state_dir / DATABASE
    if path.exists():
        yield from _started(partial(require_readable, state_dir), f"the database {path} is readable")
    daemon = state_dir.stat()
    for one in sorted(state_dir.iterdir()):
        beside = one.name.endswith(("-wal", "-shm"))  # SQLite creates these files with the owner of the database
        if one.is_file() and not beside and one.stat().st_uid != daemon.st_uid:
            whose, its = user(one.stat().st_uid), user(daemon.st_uid)
            yield Finding(
                "bad", f"{one} belongs to {whose}, its directory to {its}: run sudo chown --reference={state_dir} {one}"
            )


def _port(settings: Settings, host: str, port: int, running: bool, *, held: bool) -> Iterator[Finding]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        yield Finding("bad", f"server.host = {host} is not an address: {error.strerror}")
        return
    for family, _, _, _, address in found:
        if not running:
            yield from _started(partial(require_keys, settings, str(address[0])))
        try:
            socket.create_server(address, family=family).close()
        except PermissionError:
            yield Finding("bad", f"port {port} needs privileges: choose a port above 1023 (server.port)")
        except OSError as error:
            if running or held:
                yield Finding("good", f"port {port} of {address[0]} is in use, as expected")
            elif error.errno == errno.EADDRINUSE:
                hint = f"stop the process that {LISTENERS.format(port)} shows, or choose another port (server.port)"
                yield Finding("bad", f"port {port} of {address[0]} is in use: {hint}")
            else:
                yield Finding("bad", f"port {port} of {address[0]}: {os.strerror(error.errno or 0).lower()}")
        else:
            unused = f"nothing listens on port {port} of {address[0]}"
            if running:
                yield Finding(
                    "bad", f"{unused}, although a daemon is running: if it uses another port, name it with --port"
                )
            else:
                yield Finding("good", unused)


def _socket(path: Path, running: bool) -> Iterator[Finding]:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except PermissionError:
            yield Finding("note", f"you cannot report jobs at {path}: its group and mode do not allow it")
        except OSError:
            if running:
                yield Finding("bad", f"a daemon is running, but nothing listens at {path}")
        else:
            yield Finding("good", f"jobs can be reported at {path}")


def _disk(path: Path) -> Iterator[Finding]:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    try:
        with TemporaryFile(dir=existing) as file:  # the file has no name, so the directory does not change
            file.write(bytes(TEST_WRITE))
    except PermissionError:
        pass  # reported by _state_dir
    except OSError as error:
        yield Finding("bad", f"cannot write to the disk of {path}: {(error.strerror or '').lower()}")
        return
    grade: Literal["note", "good"] = "note" if free < MIN_FREE else "good"
    yield Finding(grade, f"the disk of {path} has {free / (1 << 30):.1f} GiB free")


def _clock() -> Iterator[Finding]:
    buffer = ctypes.create_string_buffer(512)  # struct timex; with zeros, adjtimex only reads
    if ctypes.CDLL(None).adjtimex(buffer) == TIME_ERROR:
        yield Finding("note", "the clock is not synchronized: times of jobs may be wrong (see timedatectl)")
    else:
        yield Finding("good", "the clock is synchronized")


def _tools(settings: Settings) -> Iterator[Finding]:
    if shutil.which(REPAIR_PROGRAM) is None:
        yield Finding("note", f"progressd check --repair needs {REPAIR_PROGRAM}: sudo apt install {REPAIR_PROGRAM}")
    if shutil.which("prlimit") is None:
        yield Finding("bad", "pipelines cannot run without prlimit: sudo apt install util-linux")
    for name, pipeline in settings.pipelines.items():
        program = pipeline.command[0].replace("{python}", sys.executable)
        if shutil.which(program) is None:
            yield Finding("bad", f"the pipeline {name} runs {program}, which is not installed")
        elif "progressd_pdf.pdf" in pipeline.command and find_spec("pypdfium2") is None:
            yield Finding("note", f"the pipeline {name} needs Python packages that are missing: install progressd[pdf]")
        else:
            yield Finding("good", f"the pipeline {name} can run")
        for tool in sorted(pipeline.needs):
            if shutil.which(tool) is None:
                yield Finding(
                    "note", f"{tool} is not installed: options of the pipeline {name} that need it are rejected"
                )


def _descriptors(settings: Settings) -> Iterator[Finding]:
    watchers, producers = settings.limits.max_connections, settings.ingest.max_connections
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < watchers + producers + SPARE_DESCRIPTORS:
        yield Finding(
            "note",
            f"limits.max_connections = {watchers} and ingest.max_connections = {producers}, but a process may open "
            f"only {most} files (ulimit -n)",
        )
