"""Upload limits: no client takes all places, and stalled uploads give way."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from progressd.http.context import STALL_TIMEOUT
from support.daemon import RunningDaemon, running_daemon
from support.http_client import FORM_TYPE, file_part, form
from support.keys import add, bearer
from support.peer import Peer, request
from support.submitting import PDF
from support.waiting import eventually
from trio.testing import MockClock, wait_all_tasks_blocked

PLACES = 4
FORM = form(file_part(PDF.ljust(100_000)))
HEAD = {**FORM_TYPE, "Content-Length": str(len(FORM))}
BEGUN = 1000  # bytes


class Clients:
    """Clients that upload files."""

    def __init__(self, daemon: RunningDaemon, stack: AsyncExitStack) -> None:
        self.daemon = daemon
        self._stack = stack

    @property
    def count(self) -> int:
        return len(self.daemon.daemon.services.transfers.uploads)

    async def send(self, size: int, headers: dict[str, str], local: str = "127.0.0.1") -> Peer:
        """Send the first bytes of an upload."""
        peer = await self._stack.enter_async_context(Peer(await self.daemon.connect(local=local)))
        await peer.send(request("/api/convert", {**HEAD, **headers}, method="POST") + FORM[:size])
        return peer

    async def begin(self, headers: dict[str, str] | None = None, local: str = "127.0.0.1") -> Peer:
        """Begin an upload, and wait until it counts."""
        before = self.count
        peer = await self.send(BEGUN, headers or {}, local)
        await eventually(lambda: self.count == before + 1)
        return peer

    async def are_waited_for(self) -> None:
        """Wait until the daemon waits for the clients of all uploads, and writes nothing."""
        uploads = self.daemon.daemon.services.transfers.uploads
        await eventually(lambda: all(upload.body.behind() > 0 for upload in uploads))

    async def status(self, headers: dict[str, str] | None = None, local: str = "127.0.0.1") -> int:
        """Return the status of an upload that is sent at once."""
        return (await (await self.send(len(FORM), headers or {}, local)).response()).status


@pytest.fixture
async def clients(slow_clock: MockClock, tmp_path: Path) -> AsyncIterator[Clients]:
    limits = {"max_uploads": PLACES, "max_uploads_per_address": 2}
    async with running_daemon(tmp_path, limits=limits) as daemon, AsyncExitStack() as stack:
        yield Clients(daemon, stack)


async def pass_by(clock: MockClock, seconds: float) -> None:
    await wait_all_tasks_blocked()
    clock.jump(seconds)


async def test_one_address_cannot_take_all_uploads(clients: Clients) -> None:
    for _ in range(PLACES - 1):
        await clients.begin(local="127.0.0.2")
    assert await clients.status(local="127.0.0.2") == 503
    assert await clients.status() == 202


async def test_one_key_cannot_take_all_uploads(tmp_path: Path, clients: Clients) -> None:
    keys = [bearer(add(tmp_path / "state/keys.json", name, "write")) for name in "ab"]
    clients.daemon.daemon.authenticator.load()
    for _ in range(PLACES - 1):
        await clients.begin(keys[0])
    assert await clients.status(keys[0]) == 503
    assert await clients.status(keys[1]) == 202


async def test_stalled_uploads_give_way(slow_clock: MockClock, clients: Clients) -> None:
    stalled = [await clients.begin() for _ in range(PLACES - 1)]
    assert await clients.status() == 503
    await clients.are_waited_for()
    await pass_by(slow_clock, STALL_TIMEOUT)
    for peer in stalled:
        await clients.send(BEGUN, {})
        response = await peer.response()
        assert (response.status, response.headers["connection"]) == (408, "close")
    assert await clients.status() == 503


async def test_slow_uploads_give_way(slow_clock: MockClock, clients: Clients) -> None:
    slow = [await clients.begin() for _ in range(PLACES - 1)]
    uploads = clients.daemon.daemon.services.transfers.uploads
    for position in range(8):
        for peer in slow:
            await peer.send(FORM[BEGUN + position : BEGUN + position + 1])
        await clients.are_waited_for()
        await pass_by(slow_clock, STALL_TIMEOUT / 2)
    before = list(uploads)
    assert await clients.status() == 202
    [replaced] = [peer for peer, upload in zip(slow, before, strict=True) if upload not in uploads]
    assert (await replaced.response()).status == 408


async def test_fast_enough_uploads_keep_their_place(slow_clock: MockClock, clients: Clients) -> None:
    sending = [await clients.begin() for _ in range(PLACES - 1)]
    for position in range(BEGUN, len(FORM), 10_000):
        for peer in sending:
            await peer.send(FORM[position : position + 10_000])
        await pass_by(slow_clock, 0.8 * STALL_TIMEOUT)
        if position + 10_000 < len(FORM):
            assert await clients.status() == 503
    for peer in sending:
        assert (await peer.response()).status == 202
