"""Watchers that reconnect to each daemon with their cursor, and miss nothing."""

import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from support.peer import frame
from torture.ledger import CHANGES, Ledger
from torture.load import Clients
from wsproto.frame_protocol import Opcode


class Returner:
    """A watcher of all jobs that reconnects with its last cursor."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.base: int | None = None  # the offset from which it has no gap
        self.seen: set[int] = set()

    async def watch(self, clients: Clients) -> None:
        """Watch until the daemon is gone."""
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
        """Check that nothing was missed, after the changes were compared."""
        if self.base is not None and self.cursor is not None:
            missed = ledger.missed(self.base, ledger.offset(self.cursor), self.seen)
            assert not missed, f"a watcher that reconnected has never seen {missed[:3]} ({len(missed)} in all)"


class Collector(Returner):
    """A watcher of many overlapping topics. Messages before `subscribed` have no cursor."""

    def __init__(self) -> None:
        super().__init__()
        self.received: set[str] = set()

    async def watch(self, clients: Clients) -> None:
        """Watch until the daemon is gone."""
        stories = [story.id for story in clients.ledger.stories.values() if story.answered and not story.over]
        request = {"type": "subscribe", "topics": ["jobs", *[f"job:{job_id}" for job_id in stories]]}
        said = frame(Opcode.TEXT, json.dumps(request | ({"since": self.cursor} if self.cursor else {})).encode())
        received, last = self.received.copy(), 0
        async with aclosing(clients.messages("/ws", said)) as messages:
            async for message in messages:
                type_ = message["type"]
                assert type_ != "resync", f"the cursor {self.cursor} was not known"
                assert type_ != "refused", message
                if type_ == "subscribed":
                    self.cursor = message["cursor"]
                    self.received = received
                    self.base = self.base or clients.ledger.offset(message["cursor"])
                elif "cursor" in message:
                    offset = clients.ledger.saw(message)
                    assert offset > last, f"{offset} came after {last}"
                    last = offset
                    self.seen.add(offset)
                    self.cursor = message["cursor"]
                if type_ in CHANGES:
                    assert _key(message) not in received, f"{message} came twice"
                    received.add(_key(message))

    def check(self, ledger: Ledger) -> None:
        """Check that nothing was missed, after the changes were compared."""
        if self.base is not None and self.cursor is not None:
            for message in ledger.missed(self.base, ledger.offset(self.cursor), self.seen):
                assert _key(message) in self.received, f"a watcher of many topics has never seen {message}"


def _key(message: Mapping[str, Any]) -> str:
    """Return the identity of a change without its cursor."""
    return json.dumps([message["type"], message["job_id"], message["data"], message["time"]])
