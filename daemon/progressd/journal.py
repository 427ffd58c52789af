"""The journal of systemd, by its own protocol: each message with its priority and its keys as fields.

So `journalctl JOB_ID=…` tells the story of one job, and `journalctl -p warning` what went wrong
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from logging_journald import JournaldTransport, check_journal_stream

__all__ = ["KNOWN", "Entry", "Journal", "check_journal_stream"]

PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)
KNOWN: Final = {"message", "level", "timestamp"}  # the journal has its own fields for these
PATIENCE: Final = 0.2  # seconds that the daemon may stand still for a journal that is behind, lest a burst is lost
SHARE: Final = 0.05  # of the time after that, and no more: a journal that stalls does not take the daemon along


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
    """Where entries go; those that the journal does not take in time are lost, and told with the next one it takes."""

    def __init__(self, path: str | None = None) -> None:
        self._transport = JournaldTransport(path, connected=False)  # a journal that is started again has a new socket
        self._lost = 0
        self._patience = PATIENCE  # seconds that are left
        self._sent = time.monotonic()

    def msg(self, entry: Entry) -> None:
        """Send an entry."""
        if self._lost and self._send(_loss(self._lost)):
            self._lost = 0
        if not self._send(entry):
            self._lost += 1

    def _send(self, entry: Entry) -> bool:
        begun = time.monotonic()
        self._patience = min(PATIENCE, self._patience + SHARE * (begun - self._sent))
        self._transport.socket.settimeout(self._patience)
        try:
            self._transport.send([("MESSAGE", _text(entry)), *entry.fields.items()])
        except OSError:
            return False
        finally:
            self._sent = time.monotonic()
            self._patience = max(0, self._patience - (self._sent - begun))
        return True

    def close(self) -> None:
        """Nothing more is sent."""
        self._transport.socket.close()

    debug = info = warning = error = critical = log = exception = msg


def _loss(count: int) -> Entry:
    event = {"message": "the journal has not taken all messages", "level": "warning", "lost": count}
    return Entry.of(event, f"lost={count}")


def _text(value: object) -> str:
    """Without what UTF-8 cannot say."""
    return str(value).encode(errors="backslashreplace").decode()
