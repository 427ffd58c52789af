"""The connection log: each end is counted and logged once, and a flood is cut short."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.core import close_codes
from progressd.core.close_codes import CloseCode
from progressd.core.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    Stopping,
    TooManyConnections,
    TooManyOfKey,
    Unauthorized,
)
from progressd.net import connection_log
from progressd.net.connection_log import MAX_LINES, NO_REQUEST, WINDOW, ConnectionLog, ConnectionOutcome
from progressd.ws.protocol import FAULTS
from structlog.testing import capture_logs
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.peer import Peer, close_frame, frame, upgrade
from support.samples import ID, job_id
from support.waiting import eventually
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

Line = MutableMapping[str, Any]
JOB = f"/ws/jobs/{ID}"


@asynccontextmanager
async def logged(daemon: RunningDaemon, connections: int = 1) -> AsyncIterator[list[Line]]:
    """Collect the log lines of this many connections that end in the block."""
    connection_log, lines = daemon.daemon.connection_log, list[Line]()
    ended = connection_log.counts.total() + connections
    with capture_logs() as logs:
        yield lines
        await eventually(lambda: connection_log.counts.total() == ended)
    lines += [line for line in logs if line["event"].startswith(("watcher", "connection"))]
    assert connection_log.accepted == connection_log.open + ended


async def hang_up(peer: Peer) -> None:
    await peer.stream.aclose()


FOREIGN = {"Origin": "https://elsewhere.example"}
TOO_LONG = frame(Opcode.TEXT, b"x" * 65537) + close_frame(1009)


@pytest.mark.parametrize(
    ("handshake", "sent", "leave", "kind", "reason"),
    [
        (upgrade(JOB), b"", Peer.reset, "left", "no close"),
        (upgrade(JOB), b"", hang_up, "left", "no close"),
        (upgrade(JOB), close_frame(1001), Peer.rest, "left", "1001"),
        (upgrade(JOB), close_frame(3987), Peer.rest, "left", "another code"),
        (upgrade(JOB), b"\xff" * 10, Peer.rest, "closed", "1002 protocol error"),
        (upgrade(JOB), TOO_LONG, Peer.rest, "closed", "1009 message too big"),
        (upgrade(f"/ws/jobs/{job_id(77)}"), b"", Peer.rest, "rejected", "not found"),
        (upgrade(JOB, FOREIGN), b"", Peer.rest, "rejected", "forbidden"),
    ],
)
async def test_each_end_is_counted_and_logged_once(
    daemon: RunningDaemon,
    handshake: bytes,
    sent: bytes,
    leave: Callable[[Peer], Awaitable[Any]],
    kind: str,
    reason: str,
) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    began = trio.current_time()
    async with logged(daemon) as lines, Peer(await daemon.connect()) as peer:
        await peer.send(handshake)
        if kind != "rejected":
            await peer.opened()
        await peer.send(sent)
        await leave(peer)
    took = trio.current_time() - began
    assert daemon.daemon.connection_log.counts == {(kind, reason): 1}
    [line] = lines
    assert (line["event"].split()[1], line["reason"], line["peer"]) == (kind, reason, "127.0.0.1")
    assert ("topics" in line) == (kind != "rejected")
    assert 0 <= line["seconds"] <= round(took, 3)


async def test_a_jobs_end_is_logged_with_its_topic(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with logged(daemon) as lines, Peer(await daemon.connect()) as peer:
        await peer.open_with(upgrade(JOB))
        await daemon.report(completed(ID))
        answered = False
        while data := await peer.receive():
            if not answered and b"job finished" in data:
                await peer.send(close_frame(1000))
                answered = True
    [line] = lines
    assert (line["event"], line["reason"], line["topics"]) == ("watcher closed", "1000 job finished", f"job:{ID}")


async def test_each_limit_has_its_own_reason(slow_clock: MockClock, tmp_path: Path) -> None:
    limits = {"max_connections": 2, "max_connections_per_address": 1, "exempt_addresses": ()}
    async with running_daemon(tmp_path, limits=limits) as daemon:
        async with logged(daemon, 4), daemon.watch(), Peer(await daemon.connect()) as peer:
            await peer.send(upgrade())
            assert (await peer.response()).status == 503
            async with daemon.watch(local="127.0.0.2"), Peer(await daemon.connect(local="127.0.0.3")) as third:
                await third.send(upgrade())
                assert (await third.response()).status == 503
        await eventually(lambda: daemon.daemon.connection_log.open == 0)
        async with logged(daemon), Peer(await daemon.connect()) as silent:
            await eventually(lambda: daemon.daemon.connection_log.open == 1)
            await wait_all_tasks_blocked()
            slow_clock.jump(daemon.settings.limits.handshake_timeout)
            assert await silent.rest() == b""
        await eventually(lambda: daemon.daemon.connection_log.open == 0)
        rejected = {
            reason: count for (kind, reason), count in daemon.daemon.connection_log.counts.items() if kind == "rejected"
        }
        assert rejected == {"too many of address": 1, "too many connections": 1, "handshake timeout": 1}


async def test_http_is_counted_but_not_logged(daemon: RunningDaemon) -> None:
    async with logged(daemon, 2) as lines:
        async with Peer(await daemon.connect()) as peer:
            assert (await peer.ask("/api/health")).status == 200
        async with await daemon.connect():
            pass
    assert daemon.daemon.connection_log.counts == {("http", "served"): 1, ("left", "before a request"): 1}
    assert lines == []


LEFT = ConnectionOutcome("left", "no close")
OUTCOMES = [value for value in vars(connection_log).values() if isinstance(value, ConnectionOutcome)]


def end(log: ConnectionLog, connections: int, outcome: ConnectionOutcome = LEFT) -> None:
    for _ in range(connections):
        entry = log.add("127.0.0.1")
        entry.outcome = outcome
        log.finish(entry)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
async def test_each_outcome_is_counted_and_most_are_logged(outcome: ConnectionOutcome) -> None:
    log = ConnectionLog()
    with capture_logs() as logs:
        end(log, 1, outcome)
    assert log.counts == {(outcome.kind, outcome.reason): 1}
    assert len(logs) == (outcome.kind != "http" and outcome != NO_REQUEST)


async def test_a_flood_does_not_fill_the_log(autojump_clock: MockClock) -> None:
    log = ConnectionLog()
    for window in (1, 2):
        with capture_logs() as logs:
            end(log, MAX_LINES + 1000)
        omitted = [line["connections"] for line in logs if line["event"] == "connections not logged"]
        assert omitted == [1000] * (window - 1)
        assert len(logs) == MAX_LINES + len(omitted)
        assert log.counts == {LEFT[:2]: window * (MAX_LINES + 1000)}
        await trio.sleep(WINDOW)


def table(section: str) -> list[list[str]]:
    """Return the rows of the first table in a section of docs/protocol.md."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    lines = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def test_the_docs_list_every_close_code() -> None:
    ours = {one for one in vars(close_codes).values() if isinstance(one, CloseCode)} - {close_codes.GONE}
    documented = {int(code): " ".join(row) for row in table("Close codes") for code in row[0].split(", ")}
    assert documented.keys() == {one.code for one in ours} | FAULTS.keys()
    rows = "\n".join(" ".join(row) for row in table("Close codes"))
    for one in ours:
        assert f"`{one.reason}`" in rows
        assert one.reconnect == (" yes, " in documented[one.code]), documented[one.code]


def test_the_docs_list_every_rejection() -> None:
    documented = {int(status) for row in table("Rejected handshakes") for status in row[0].split(", ")}
    errors = (InvalidInput, Unauthorized, Forbidden, NotFound, Stopping, TooManyConnections, TooManyOfKey)
    assert documented == {error.status for error in errors} | {426, 429}
