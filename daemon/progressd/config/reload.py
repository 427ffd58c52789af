"""Reload the settings while the daemon runs.

Each part of the daemon that depends on settings registers a hook. The hook checks the new settings, raises
SettingsError if they are invalid, and returns a function that applies them and cannot fail. So all settings change, or
none do.
"""

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import structlog
from msgspec import Struct
from msgspec.structs import replace

from progressd.config.settings import Settings
from progressd.core.errors import SettingsError

# Settings that need a restart.
FIXED: Final = frozenset(
    {
        "auth.keys_file",
        "auth.required",
        "auth.token_secret_file",
        "ingest.socket",
        "ingest.socket_mode",
        "log.format",
        "log.retention",
        "runner.concurrency",
        "server.base_path",
        "server.host",
        "server.port",
        "state_dir",
        "store.retention",
        "store.synchronous",
        "store.upload_retention",
    }
)

Hook = Callable[[Settings], Callable[[], None]]
S = TypeVar("S", bound=Struct)
log = structlog.get_logger(__name__)


class Reload:
    """Reload settings and apply them.

    `settings` are the settings in force. `rejected` is the error of the last reload; "" if it succeeded. `waiting`
    names the changed settings that need a restart.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self.settings = settings
        self.rejected = self.waiting = ""
        self._read = read
        self._hooks: list[Hook] = []

    def register(self, hook: Hook) -> None:
        """Register a hook that each reload calls."""
        self._hooks.append(hook)

    @property
    def pending(self) -> str:
        """The reason why the settings in force differ from the file, "" if they do not."""
        if self.rejected:
            return f"settings not reloaded: {self.rejected}"
        return f"settings wait for a restart: {self.waiting}" if self.waiting else ""

    def __call__(self) -> None:
        """Read the settings again, and apply all of them or none."""
        try:
            wanted = self._read()
            new = with_fixed(self.settings, wanted)
            changes = [hook(new) for hook in self._hooks]
        except SettingsError as error:
            self.rejected = str(error)
            log.error("settings not reloaded", error=str(error))
            return
        for apply in changes:
            apply()
        log.info("settings reloaded", changed=", ".join(changed(self.settings, new)) or "nothing")
        if waiting := ", ".join(changed(new, wanted)):
            log.warning("settings need a restart", settings=waiting)
        self.waiting = waiting
        self.settings = new
        self.rejected = ""


def changed(old: Struct, new: Struct, prefix: str = "") -> Iterator[str]:
    """Yield the keys of settings that differ."""
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Struct):
            yield from changed(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name


def with_fixed(old: S, new: S, prefix: str = "") -> S:
    """Return the new settings with the old values of settings that need a restart."""
    values = {}
    for name in new.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if prefix + name in FIXED:
            values[name] = before
        elif isinstance(after, Struct):
            values[name] = with_fixed(before, after, f"{prefix}{name}.")
    return replace(new, **values)
