"""The state directory. Only one daemon can use it at a time."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import structlog

from progressd.core.errors import SettingsError
from progressd.system.fs import new_file, obstacle, sync

log = structlog.get_logger(__name__)


@contextmanager
def own_state_dir(state_dir: Path) -> Iterator[None]:
    """Create the state directory if necessary, and lock it for this daemon. Raises SettingsError."""
    try:
        new = [path for path in (state_dir, *state_dir.parents) if not path.exists()]
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(*(path.parent for path in new))  # otherwise a power cut might remove the directory and its synced files
        with suppress(FileExistsError):
            os.close(new_file(state_dir / "lock"))
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        whose = obstacle([state_dir / "lock"]) if isinstance(error, PermissionError) else None
        raise SettingsError(f"cannot use the state directory {state_dir}: {whose or error.strerror}") from error
    with closing(os.fdopen(lock)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"another progressd uses the state directory {state_dir}: stop it, or choose another with --state-dir"
            ) from None
        yield


def make_directory(path: Path) -> None:
    """Create a subdirectory if necessary, and make it unreadable for other users. Raises SettingsError."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        reason = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise SettingsError(f"cannot use {path}: {reason}") from error
    if mode & 0o077:
        try:
            path.chmod(0o700)
        except OSError as error:
            log.warning("directory is readable by other users", path=str(path), mode=f"{mode:04o}", error=str(error))
