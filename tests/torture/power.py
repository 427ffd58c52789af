"""The environment of a daemon: a disk that can fail, a clock that can jump, and power that can be cut."""

import os
import random
import shutil
from mmap import mmap
from pathlib import Path

from torture.disk import Disk, Fate, read_log

CONTROL = ("write_errno", "sync_errno", "open_errno", "clock_shift", "failed", "recorded", "die_after", "log_errno")


class Control:
    """Shared memory with numbers for the preloaded library."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 * len(CONTROL)))
        with path.open("r+b") as file:
            self._values = mmap(file.fileno(), 0)

    def __getitem__(self, name: str) -> int:
        at = 8 * CONTROL.index(name)
        return int.from_bytes(self._values[at : at + 8], "little", signed=True)

    def __setitem__(self, name: str, value: int) -> None:
        at = 8 * CONTROL.index(name)
        self._values[at : at + 8] = value.to_bytes(8, "little", signed=True)

    def clear(self) -> None:
        """Reset all faults."""
        for name in CONTROL:
            self[name] = 0


class Mains:
    """The environment of one daemon after another: call `plug_in` before the start, and `cut` after the end.

    Written data stays, as after a kill.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self.control = Control(place / "control")

    @property
    def state_dir(self) -> Path:
        """Return the state directory, which the first daemon creates."""
        return self._root / "state"

    @property
    def _root(self) -> Path:
        return self._place

    @property
    def _log(self) -> Path:
        return Path(os.devnull)

    def plug_in(self) -> dict[str, str]:
        """Return the environment variables of the daemon."""
        return {
            "TORTURE_DISK": str(self._root),
            "TORTURE_LOG": str(self._log),
            "TORTURE_CONTROL": str(self._place / "control"),
        }

    def cut(self) -> None:
        """Reset all faults."""
        self.control.clear()


class Power(Mains):
    """An environment that loses unsynced data. `state_dir` moves to a new disk at each cut."""

    def __init__(self, place: Path, chance: random.Random, ignoring: str = "") -> None:
        super().__init__(place)
        self._chance = chance
        self._ignoring = ignoring
        self._number = 0
        self._root.mkdir()

    @property
    def _root(self) -> Path:
        return self._place / f"disk-{self._number}"

    @property
    def _log(self) -> Path:
        return self._place / f"log-{self._number}"

    def plug_in(self) -> dict[str, str]:
        self._disk = Disk(self._root, self._ignoring)
        return super().plug_in()

    def cut(self) -> None:
        """Cut the power: unsynced data may be lost."""
        super().cut()
        self._disk.replay(read_log(self._log.read_bytes() if self._log.exists() else b""))
        shutil.rmtree(self._root, ignore_errors=True)  # children of the daemon may still write here
        self._log.unlink(missing_ok=True)
        self._number += 1
        self._disk.after_cut(self._root, Fate(self._chance))
