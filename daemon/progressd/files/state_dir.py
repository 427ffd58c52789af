"""The state directory: made where there is none, and one daemon's at a time."""

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
    """Make the state directory, and keep every other daemon out of it. Raises SettingsError."""
    try:
        new = [path for path in (state_dir, *state_dir.parents) if not path.exists()]
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(*(path.parent for path in new))  # or a power cut might take it, with all that is synced in it
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
    """Make a directory in it, where there is none, and keep other users out of it. Raises SettingsError."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        why = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
        raise SettingsError(f"cannot use {path}: {why}") from error
    if mode & 0o077:
        try:
            path.chmod(0o700)
        except OSError as error:
            log.warning("other users may read a directory", path=str(path), mode=f"{mode:04o}", error=str(error))
