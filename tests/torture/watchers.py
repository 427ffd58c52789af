"""Watchers who come back to each daemon with the cursor they have, and miss nothing."""

import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from support.peer import frame
from torture.ledger import CHANGES, Ledger
from torture.load import Clients
from wsproto.frame_protocol import Opcode


class Returner:
    """A watcher of all jobs that comes back to each daemon with the last cursor it has seen, be it that of `hello`."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.base: int | None = None  # from here on it has been there without a gap
        self.seen: set[int] = set()

    async def watch(self, clients: Clients) -> None:
        """Until the daemon is gone."""
        target = "/ws/jobs" + (f"?since={self.cursor}" if self.cursor else "")
        last = 0
        async with aclosing(clients.messages(target)) as messages:
            async for message in messages:
                assert message["type"] != "resync", f"the cursor {self.cursor} was not known"
                if message["type"] == "hello":
                    self.cursor = message["cursor"]
                    last = max(last, clients.ledger.offset(self.cursor))
                    self.base = last if self.base is None else self.base
                    continue
                if "cursor" not in message:
                    clients.ledger.saw_without_cursor(message)
                    continue
                offset = clients.ledger.saw(message)
                assert offset > last, f"{offset} came after {last}"
                assert message["type"] not in CHANGES or offset not in self.seen, f"{message} came twice"
                last = offset
                self.seen.add(offset)
                self.cursor = message["cursor"]

    def check(self, ledger: Ledger) -> None:
        """It has missed nothing; call it when the changes have been compared."""
        if self.base is not None and self.cursor is not None:
            missed = ledger.missed(self.base, ledger.offset(self.cursor), self.seen)
            assert not missed, f"a watcher who came back has never seen {missed[:3]} ({len(missed)} in all)"


class Collector(Returner):
    """One with many topics on one socket, which overlap. What was comes without a cursor, up to `subscribed`."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    async def watch(self, clients: Clients) -> None:
        """Until the daemon is gone."""
        stories = [story.id for story in clients.ledger.stories.values() if story.answered and not story.over]
        request = {"type": "subscribe", "topics": ["jobs", *[f"job:{job_id}" for job_id in stories]]}
        said = frame(Opcode.TEXT, json.dumps(request | ({"since": self.cursor} if self.cursor else {})).encode())
        told, last = self.told.copy(), 0
        async with aclosing(clients.messages("/ws", said)) as messages:
            async for message in messages:
                type_ = message["type"]
                assert type_ != "resync", f"the cursor {self.cursor} was not known"
                assert type_ != "refused", message
                if type_ == "subscribed":
                    self.cursor = message["cursor"]
                    self.told = told
                    self.base = self.base or clients.ledger.offset(message["cursor"])
                elif "cursor" in message:
                    offset = clients.ledger.saw(message)
                    assert offset > last, f"{offset} came after {last}"
                    last = offset
                    self.seen.add(offset)
                    self.cursor = message["cursor"]
                if type_ in CHANGES:
                    assert _words(message) not in told, f"{message} came twice"
                    told.add(_words(message))

    def check(self, ledger: Ledger) -> None:
        """It has missed nothing; when the changes have been compared."""
        if self.base is not None and self.cursor is not None:
            for message in ledger.missed(self.base, ledger.offset(self.cursor), self.seen):
                assert _words(message) in self.told, f"a watcher of many topics has never seen {message}"


def _words(message: Mapping[str, Any]) -> str:
    """What is told of a change, by which it is known again where it comes without a cursor."""
    return json.dumps([message["type"], message["job_id"], message["data"], message["time"]])
