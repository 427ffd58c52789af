"""The load on a daemon until it is killed: producers, uploads and watchers, which record everything in a ledger.

Each task runs until the daemon is gone, and handles all data that reached its socket.
"""

import json
import random
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import trio
from support.daemon import completed, failed, progress, registered, status_change
from support.http_client import FORM_TYPE, file_part, form, post_pieces
from support.peer import Peer
from torture.fork_server import client_of
from torture.ledger import Ledger, Story
from wsproto.frame_protocol import Opcode

GONE = (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError, httpx.TransportError)
NOTICES = ("server_shutdown", "server_status")  # notices of the daemon
ABANDONED = b'{"kind": "abandoned", "lease_seconds": 1}'
STORIES = 5  # of one producer at a time


def event_at(story: Story, position: int, end: str | None = None) -> dict[str, Any]:
    """Return the event at this position."""
    if position == 1:
        return registered(story.id, kind="story", total_steps=story.steps)
    if position < story.last:
        return progress(story.id, position - 1, story.steps, f"step {position - 1}")
    return {
        "completed": completed(story.id, page_count=story.steps),
        "error": failed(story.id, "no paper"),
        "cancelled": status_change(story.id, "cancelled"),
    }[end or story.end]


async def post(client: httpx.AsyncClient, path: str, body: bytes, content_type: str) -> httpx.Response:
    """Post a body that needs no cleanup if the daemon disappears."""
    headers = {"Host": client.base_url.netloc.decode(), "Content-Type": content_type, "Content-Length": str(len(body))}
    return await post_pieces(client, path, [body], headers)


class Clients:
    """All clients of one daemon."""

    def __init__(self, ledger: Ledger, url: str, chance: random.Random) -> None:
        self.ledger = ledger
        self.url = url
        self.address = url.removeprefix("http://")
        self.chance = chance
        self._again = list(ledger.uploads.unanswered)  # uploads to be sent again
        self._batches_again = [names for names, batch_id in ledger.uploads.batches.items() if batch_id is None]
        self.draining = False
        self.ending = False  # it is stopping, or about to be killed

    @contextmanager
    def until_gone(self) -> Generator[None]:
        """Ignore a lost connection while the daemon is ending."""
        try:
            yield
        except* GONE as gone:
            if not self.ending:
                raise AssertionError("the daemon closed a connection") from gone

    def next_events(self, stories: list[Story], most: int) -> list[tuple[Story, int]]:
        """Return the next events of a producer's stories. Replace finished stories."""
        stories[:] = [story for story in stories if not story.over]
        while len(stories) < STORIES:
            ends = ("completed", "error", "cancelled")
            story = Story(str(uuid.uuid4()), self.chance.randint(1, 12), self.chance.choice(ends))
            self.ledger.stories[story.id] = story
            stories.append(story)
        batch = []
        for story in self.chance.sample(stories, self.chance.randint(1, STORIES)):
            upto = min(story.last, story.answered + self.chance.randint(1, most))
            batch += [(story, position) for position in range(story.answered + 1, upto + 1)]
        for story, position in batch:
            self.ledger.sent(story, position, story.end if position == story.last else None)
        return batch

    def take(self, batch: list[tuple[Story, int]], answers: list[dict[str, Any]], sent: float) -> None:
        """Record the answers to events that were sent then (seconds)."""
        for (story, position), answer in zip(batch, answers, strict=True):
            if answer["ok"]:
                end = story.end if position == story.last else None
                self.ledger.answered(story, position, answer["cursor"], time.monotonic(), end)
            else:
                self.rejected(story, position, answer["error"], sent)

    def rejected(self, story: Story, position: int, error: str, sent: float) -> None:
        """Check a rejection: the daemon stops, its disk fails, or another end came first."""
        if len(story.ends) > 1 and "is already " in error:
            story.answered = story.last
            return
        assert "damaged" not in error, f"job {story.id}, event {position}: {error}"
        failing = self.ledger.excuses_rejection(sent)
        unknown = story.answered == 0 and "no job" in error  # its registration was rejected
        excused = (self.draining and "stopping" in error) or (failing and ("the database" in error or unknown))
        assert excused, f"job {story.id}, event {position} of {story.answered}: {error}"

    def excuses(self, answer: httpx.Response, sent: float) -> bool:
        """Return whether a rejection is expected for a request sent then (seconds)."""
        failing = self.ledger.excuses_rejection(sent)
        return (self.draining and answer.status_code == 503) or (failing and answer.status_code in (503, 507))

    async def recovered(self) -> None:
        """Wait until the daemon has recovered."""
        async with client_of(self.url) as client:
            with trio.fail_after(10):
                while (answer := await client.get("/api/health/ready")).status_code != 200:
                    assert answer.json()["status"] == "failing", answer.text
                    await trio.sleep(0.05)
            assert (await client.get("/api/health")).json()["status"] == "healthy"
            sent = time.monotonic()
            answer = await client.post("/api/jobs", json={"kind": "marker"})
            assert answer.status_code == 201, answer.text
            self.ledger.disk_works(sent, answer.json()["cursor"])

    async def over_unix(self, socket_path: str, stories: list[Story]) -> None:
        """Report on the Unix socket."""
        with self.until_gone():
            async with await trio.open_unix_socket(socket_path) as stream:
                buffered = b""
                while True:
                    batch = self.next_events(stories, 4)
                    lines = [json.dumps({"ref": 1, **event_at(*one)}).encode() + b"\n" for one in batch]
                    sent = time.monotonic()
                    await stream.send_all(b"".join(lines))
                    waiting = batch
                    while waiting:
                        chunk = await stream.receive_some()
                        if not chunk:
                            raise EOFError
                        *whole, buffered = (buffered + chunk).split(b"\n")
                        answered, waiting = waiting[: len(whole)], waiting[len(whole) :]
                        self.take(answered, [json.loads(line) for line in whole], sent)
                    if self.ledger.excuses_rejection(sent):
                        await trio.sleep(0.01)

    async def over_http(self, stories: list[Story]) -> None:
        """Report over HTTP; a rival reports another end of each job."""
        with self.until_gone():
            async with client_of(self.url) as client:
                while True:
                    batch = self.next_events(stories, 3)
                    lines = b"".join(json.dumps(event_at(*one)).encode() + b"\n" for one in batch)
                    sent = time.monotonic()
                    async with trio.open_nursery() as nursery:
                        for story, position in batch:
                            if position == story.last and story.answered >= 2:
                                nursery.start_soon(self._rival, client, story)
                        answer = await post(client, "/api/events", lines, "application/x-ndjson")
                    if answer.status_code == 503 and self.draining:
                        return
                    self.take(batch, [json.loads(line) for line in answer.text.splitlines()], sent)

    async def _rival(self, client: httpx.AsyncClient, story: Story) -> None:
        """Report another end of the same job at the same time."""
        end = "error" if story.end == "cancelled" else "cancelled"
        self.ledger.sent(story, story.last, end)
        event = json.dumps(event_at(story, story.last, end)).encode()
        sent = time.monotonic()
        answer = await post(client, f"/api/jobs/{story.id}/events", event, "application/json")
        if answer.status_code == 200:
            self.ledger.answered(story, story.last, answer.json()["cursor"], time.monotonic(), end)
        elif answer.status_code == 409:
            story.answered = story.last  # the other end came first
        else:
            assert self.excuses(answer, sent), answer.text

    async def uploads(self) -> None:
        """Upload files, and repeat some with their key."""
        with self.until_gone():
            async with client_of(self.url) as client:
                while True:
                    name = self._next_upload()
                    accepted = await self._submit(client, "/api/convert", "file", (name,))
                    if accepted is not None:
                        self.ledger.uploads.answered(name, accepted["job_id"])
                        self.ledger.uploads.unanswered.remove(name)
                    elif self.chance.random() < 0.7:
                        self._again.append(name)
                    await trio.sleep(self.chance.uniform(0, 0.1))

    async def _submit(self, client: httpx.AsyncClient, path: str, field: str, names: tuple[str, ...]) -> Any:
        """Send files in pieces, and return the answer; None if they were rejected."""
        uploads = self.ledger.uploads
        whole = form(*[file_part(uploads.inputs[name], name, field) for name in names])
        size = self.chance.randint(1000, 65536)
        pieces = (whole[start : start + size] for start in range(0, len(whole), size))
        headers = {"Host": self.address, "Idempotency-Key": names[0], **FORM_TYPE}
        sent = time.monotonic()
        for name in names:
            uploads.sent(name)
        answer = await post_pieces(client, f"{path}?pipeline=copy", pieces, headers)
        if answer.status_code == 202:
            return answer.json()
        assert self.excuses(answer, sent), answer.text
        for name in names:
            uploads.rejected(name, full=answer.status_code == 507)
        return None

    def _next_upload(self) -> str:
        """Return the name of the next file."""
        ledger, choice = self.ledger, self.chance.random()
        if choice < 0.5 and self._again:
            return self._again.pop(0)
        answered = [name for name in ledger.uploads.accepted.values() if name not in ledger.uploads.unanswered]
        name = self.chance.choice(answered) if choice < 0.6 and answered else self._new_file()
        ledger.uploads.unanswered.append(name)
        return name

    def _new_file(self) -> str:
        """Create a file in the ledger, and return its name."""
        name = f"{uuid.uuid4()}.pdf"
        self.ledger.uploads.inputs[name] = b"%PDF-" + self.chance.randbytes(int(2 ** self.chance.uniform(8, 18)))
        return name

    async def batches(self) -> None:
        """Submit batches, and repeat some with their key."""
        with self.until_gone():
            async with client_of(self.url) as client:
                while True:
                    names = self._next_batch()
                    if (accepted := await self._submit(client, "/api/batch", "files", names)) is not None:
                        self.ledger.uploads.batch_answered(names, accepted["batch_id"])
                    await trio.sleep(self.chance.uniform(0, 0.4))

    def _next_batch(self) -> tuple[str, ...]:
        """Create a batch in the ledger, or repeat one; return the names of its files."""
        if self._batches_again and self.chance.random() < 0.3:
            return self._batches_again.pop()
        names = tuple(self._new_file() for _ in range(self.chance.randint(1, 3)))
        self.ledger.uploads.batches[names] = None
        return names

    async def abandon(self) -> None:
        """Register jobs with a lease, and report nothing more."""
        with self.until_gone():
            async with client_of(self.url) as client:
                while True:
                    sent = time.monotonic()
                    answer = await post(client, "/api/jobs", ABANDONED, "application/json")
                    if answer.status_code == 201:
                        self.ledger.abandoned.add(answer.json()["job_id"])
                    else:
                        assert self.excuses(answer, sent), answer.text
                    await trio.sleep(self.chance.uniform(0, 0.4))

    async def messages(self, target: str, said: bytes = b"") -> AsyncGenerator[Mapping[str, Any]]:
        """Send `said`, and iterate over the messages about jobs until the end. The caller closes it."""
        host, port = self.address.split(":")
        with self.until_gone():
            async with Peer(await trio.open_tcp_stream(host, int(port))) as peer:
                if not await self._open(peer, target):
                    return
                await peer.send(said)
                while True:
                    opcode, payload = await peer.next_frame(hello=True)
                    if opcode is Opcode.TEXT:
                        if (message := json.loads(payload))["type"] not in NOTICES:
                            yield message
                    else:
                        closed = opcode is Opcode.CLOSE and not self.draining
                        assert not closed, f"a watcher of {target} was sent away: {payload}"

    async def _open(self, peer: Peer, target: str) -> bool:
        """Open a WebSocket. Return False if the daemon is stopping and rejects it."""
        try:
            await peer.open(target, {"Host": self.address})
        except AssertionError:
            if not self.draining:
                raise
            return False
        return True
