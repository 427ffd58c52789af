"""What a daemon runs on: a disk that can be made to fail, a clock that can be moved, and power that may be cut."""

import os
import random
import shutil
from mmap import mmap
from pathlib import Path

from torture.disk import Disk, Fate, read_log

CONTROL = ("write_errno", "sync_errno", "open_errno", "clock_shift", "failed", "recorded", "die_after", "log_errno")


class Control:
    """What the preloaded library looks at while the daemon runs: numbers by name."""

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
        """All is well."""
        for name in CONTROL:
            self[name] = 0


class Mains:
    """One daemon after the other: `plug_in` before it starts, `cut` when it is gone, which is all that there is of it.

    What was written stays, as after a kill: the disk below the directory fails when it is told to, and forgets nothing.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self.control = Control(place / "control")

    @property
    def state_dir(self) -> Path:
        """Where the daemon keeps its state; the first one makes it."""
        return self._root / "state"

    @property
    def _root(self) -> Path:
        return self._place

    @property
    def _log(self) -> Path:
        return Path(os.devnull)

    def plug_in(self) -> dict[str, str]:
        """The variables that the daemon needs."""
        return {
            "TORTURE_DISK": str(self._root),
            "TORTURE_LOG": str(self._log),
            "TORTURE_CONTROL": str(self._place / "control"),
        }

    def cut(self) -> None:
        """Nothing fails any more."""
        self.control.clear()


class Power(Mains):
    """With a disk that loses what was not synced: `state_dir` is on another one after each cut."""

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
        """What has not been synced may be lost."""
        super().cut()
        self._disk.replay(read_log(self._log.read_bytes() if self._log.exists() else b""))
        shutil.rmtree(self._root, ignore_errors=True)  # children of the daemon may still write here
        self._log.unlink(missing_ok=True)
        self._number += 1
        self._disk.after_cut(self._root, Fate(self._chance))
