"""The upkeep of a state directory, from outside of the daemon and whether it runs or not: back up, check, export."""

from pathlib import Path
from typing import Final

from progressd.store import copying

DATABASE: Final = "progressd.db"


def backup(state_dir: Path, target: Path) -> int:
    """Copy the database to a new file, and check the copy; its size in bytes. Raises Conflict, SettingsError."""
    return copying.backup(state_dir / DATABASE, target)
