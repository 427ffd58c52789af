"""Timeouts and ends of `WS /ws/publish`, over memory."""

import json
from typing import Any

import pytest
import trio
from progressd.core.close_codes import CREDENTIALS_EXPIRED, DRAINING, CloseCode
from progressd.core.errors import StoreFailed
from progressd.producers.ndjson import SEND_TIMEOUT
from progressd.ws.websocket import CLOSE_TIMEOUT
from support.memory import HOUR, Server, close_and_when
from support.peer import Peer, close_frame, frame
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

PUBLISH = "/ws/publish"
REPORT = frame(Opcode.TEXT, b'{"type":"job_created"}')


async def answers(peer: Peer, count: int) -> list[dict[str, Any]]:
    return [json.loads((await peer.next_frame())[1]) for _ in range(count)]


async def test_a_producer_that_reads_no_answers_times_out(server: Server, autojump_clock: MockClock) -> None:
    transport, peer = await server.connect(PUBLISH)
    transport.full = True
    start = trio.current_time()
    for _ in range(100):
        await peer.send(frame(Opcode.TEXT, b"\n".join([b'{"type":"job_created"}'] * 100)))
    await wait_all_tasks_blocked()
    assert len(server.ingest.taken) < 2000
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert round(server.ended_at - start) == 300 + CLOSE_TIMEOUT


@pytest.mark.parametrize("reads", [True, False])
async def test_a_producer_that_closes_has_a_minute_to_read(
    server: Server, autojump_clock: MockClock, reads: bool
) -> None:
    transport, peer = await server.connect(PUBLISH)
    transport.full = True
    start = trio.current_time()
    await peer.send(REPORT * 3 + close_frame(1000))
    await trio.sleep(SEND_TIMEOUT - 1)
    assert server.ended_at is None
    transport.full = not reads
    if reads:
        assert [answer["ok"] for answer in await answers(peer, 3)] == [True] * 3
        assert (await close_and_when(peer))[0] == 1000
    await trio.sleep(SEND_TIMEOUT)
    assert server.ended_at is not None
    assert round(server.ended_at - start) == SEND_TIMEOUT - reads


@pytest.mark.parametrize(
    ("closing", "taken"),
    [(DRAINING, 3), (CREDENTIALS_EXPIRED, 1)],
    ids=["a drain takes waiting lines", "expired credentials drop waiting lines"],
)
async def test_waiting_lines_when_the_daemon_closes(
    server: Server, autojump_clock: MockClock, closing: CloseCode, taken: int
) -> None:
    _, peer = await server.connect(PUBLISH)
    server.ingest.may_decide = trio.Event()
    for _ in range(3):  # the first is being decided, the others wait
        await peer.send(REPORT)
        await wait_all_tasks_blocked()
    await server.websockets.close(closing, 0)
    await wait_all_tasks_blocked()
    await peer.send(REPORT)  # too late
    await trio.sleep(1)
    server.ingest.may_decide.set()
    assert [answer["ok"] for answer in await answers(peer, taken)] == [True] * taken
    assert (await close_and_when(peer))[:2] == (closing.code, closing.reason)
    await peer.send(REPORT + close_frame(closing.code))
    assert await peer.receive() == b""
    assert len(server.ingest.taken) == taken


async def test_a_store_failure_names_the_first_line_not_taken(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect(PUBLISH)
    await peer.send(REPORT)
    assert [answer["ok"] for answer in await answers(peer, 1)] == [True]
    server.ingest.broken = StoreFailed("the disk is full")
    await peer.send(REPORT * 2)
    assert await answers(peer, 1) == [{"ok": False, "error": "the disk is full", "status": 503, "line": 2}]
    assert (await close_and_when(peer))[:2] == (1013, "try again later")
