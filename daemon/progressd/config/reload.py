"""Settings that are read again while the daemon runs: which of them can change, and who has to know.

Whoever keeps something from the settings that may change registers a hook. It looks at the new ones, raises an error
(SettingsError) where they are impossible, and gives back what puts them into force, which cannot fail: so all of them
change, or none does.
"""

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import structlog
from msgspec import Struct
from msgspec.structs import replace

from progressd.config.settings import Settings
from progressd.core.errors import SettingsError

# what the daemon has opened, or built, when it started
FIXED: Final = frozenset(
    {
        "auth.keys_file",
        "auth.required",
        "auth.token_secret_file",
        "ingest.socket",
        "ingest.socket_mode",
        "log.format",
        "runner.concurrency",
        "server.base_path",
        "server.host",
        "server.port",
        "state_dir",
        "store.retention",
        "store.synchronous",
    }
)

Hook = Callable[[Settings], Callable[[], None]]
S = TypeVar("S", bound=Struct)
log = structlog.get_logger(__name__)


class Reload:
    """`settings` are those in force. `refused` is why the last attempt changed nothing, "" if it did.

    `waiting`: the keys of those that change only with a restart.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self.settings = settings
        self.refused = self.waiting = ""
        self._read = read
        self._hooks: list[Hook] = []

    def register(self, hook: Hook) -> None:
        """Have a part of the daemon follow the settings."""
        self._hooks.append(hook)

    @property
    def pending(self) -> str:
        """Why the settings in force are not those that are wanted, "" where they are."""
        if self.refused:
            return f"settings not reloaded: {self.refused}"
        return f"settings wait for a restart: {self.waiting}" if self.waiting else ""

    def __call__(self) -> None:
        """Read the settings again, and put them into force or leave everything as it is."""
        try:
            wanted = self._read()
            new = with_fixed(self.settings, wanted)
            ready = [hook(new) for hook in self._hooks]
        except SettingsError as error:
            self.refused = str(error)
            log.error("settings not reloaded, the old ones stay", error=str(error))
            return
        for put_into_force in ready:
            put_into_force()
        log.info("settings reloaded", changed=", ".join(changed(self.settings, new)) or "nothing")
        if waiting := ", ".join(changed(new, wanted)):
            log.warning("some settings change only with a restart", settings=waiting)
        self.waiting = waiting
        self.settings = new
        self.refused = ""


def changed(old: Struct, new: Struct, prefix: str = "") -> Iterator[str]:
    """The keys of settings that differ."""
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Struct):
            yield from changed(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name


def with_fixed(old: S, new: S, prefix: str = "") -> S:
    """The new settings, with the old values of what cannot change."""
    values = {}
    for name in new.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if prefix + name in FIXED:
            values[name] = before
        elif isinstance(after, Struct):
            values[name] = with_fixed(before, after, f"{prefix}{name}.")
    return replace(new, **values)
