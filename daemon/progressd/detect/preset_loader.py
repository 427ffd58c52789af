"""Presets: how to find the progress in the output of a program, as data in `presets/NAME.toml`.

A preset is read when its program is run. The file has the name of the program. A user's preset has the same format and
replaces the built-in one of that name. `rules.py` checks it and applies its rules.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from progressd.core.errors import InvalidInput
from progressd.detect.preset import Adaptation, Preset

BUILT_IN_PRESETS: Final = Path(__file__).with_name("presets")
SYSTEM: Final = Path("/etc/progressd/presets")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class Presets:
    """The presets in some directories. If several contain a name, the first one wins. The built-in presets are last."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        self._directories = (*directories, BUILT_IN_PRESETS)
        self._read = dict[str, Preset | None]()

    @classmethod
    def of_user(cls, environ: Mapping[str, str]) -> "Presets":
        """Return the presets for a user: the user's own, those of the host, and the built-in ones."""
        home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")
        return cls([Path(home, "progressd", "presets"), SYSTEM])

    def find(self, name: str) -> Preset | None:
        """Return a preset by its name. Raises InvalidInput if its file is invalid."""
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all presets, sorted, without aliases."""
        files = {path.stem: path for each in reversed(self._directories) for path in each.glob("*.toml")}
        return (name for name in sorted(files) if (preset := self.find(name)) is not None and preset.name == name)

    def path(self, name: str) -> Path | None:
        """Return the file of a preset, or of the preset that an alias names. None if there is no such preset."""
        preset = self.find(name)
        files = [directory / f"{preset.name}.toml" for directory in self._directories] if preset else []
        return next((file for file in files if file.is_file()), None)

    def _load(self, name: str, *, alias: bool = False) -> Preset | None:
        """Read a preset. `alias`: another preset has its name in `same_as`."""
        if _NAME.fullmatch(name) is None:
            return None
        for directory in self._directories:
            path = directory / f"{name}.toml"
            try:
                table = tomllib.loads(path.read_text(encoding="utf-8"))
                if directory != BUILT_IN_PRESETS:
                    from progressd.detect.rules import check  # only for presets of users, because the import is slow

                    check(table)
                preset = Preset(**{**table, "adapt": tuple(Adaptation(**one) for one in table.get("adapt", ()))})
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if not os.access(directory, os.X_OK):  # such as the home directory of another user, after su
                    continue
                raise InvalidInput(f"cannot read the preset {path}: {error.strerror}") from None
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"the preset {path} is invalid: {error}") from None
            if not preset.same_as:
                return preset._replace(name=name)
            target = None if alias else self._load(preset.same_as, alias=True)
            if target is None:
                raise InvalidInput(f"the preset {path} is invalid: same_as must name a preset that is not an alias")
            return target
        return None
