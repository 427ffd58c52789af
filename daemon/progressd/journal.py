"""The journal of systemd, by its own protocol: each message with its priority and its keys as fields.

So `journalctl JOB_ID=…` tells the story of one job, and `journalctl -p warning` what went wrong
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from logging_journald import JournaldTransport, check_journal_stream

__all__ = ["KNOWN", "Entry", "Journal", "check_journal_stream"]

PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)
KNOWN: Final = {"message", "level", "timestamp"}  # the journal has its own fields for these
PATIENCE: Final = 1.0  # seconds for the journal to take a message; a daemon does not stand still for it


class Entry(str):
    """A message, as text, with its priority and keys."""

    __slots__ = ("fields",)
    fields: dict[str, str]

    @classmethod
    def of(cls, event: Mapping[str, Any], words: str) -> "Entry":
        """From `message`, `level` and any keys; `words` tell the keys to who reads the text alone."""
        entry = cls(f"{event['message']} {words}".rstrip())
        entry.fields = {"PRIORITY": str(PRIORITIES[event["level"]]), "SYSLOG_IDENTIFIER": "progressd"}
        for key, value in event.items():
            if key not in KNOWN:
                entry.fields[key.lstrip("_").upper()] = _text(value)
        return entry


class Journal:
    """Where entries go; one that the journal does not take is lost, and ends nothing."""

    def __init__(self, path: str | None = None) -> None:
        self._transport = JournaldTransport(path, connected=False)  # a journal that is started again has a new socket
        self._transport.socket.settimeout(PATIENCE)

    def msg(self, entry: Entry) -> None:
        """Send an entry."""
        with contextlib.suppress(OSError):
            self._transport.send([("MESSAGE", _text(entry)), *entry.fields.items()])

    def close(self) -> None:
        """Nothing more is sent."""
        self._transport.socket.close()

    debug = info = warning = error = critical = log = exception = msg


def _text(value: object) -> str:
    """Without what UTF-8 cannot say."""
    return str(value).encode(errors="backslashreplace").decode()
