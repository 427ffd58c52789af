"""Producers on the Unix socket of a running daemon: answers, limits, isolation and shutdown."""

import contextlib
import itertools
import json
import math
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.errors import StoreFailed
from progressd.core.messages import JobStatus
from progressd.engine.ingest import EventSink
from progressd.producers.ndjson import TURN_LINES, NDJSONReader
from progressd.producers.unix_socket import MAX_READS, Poller, ProducerConnection
from progressd.store.sqlite import SQLiteStore
from structlog.testing import capture_logs
from support.daemon import (
    PATIENCE,
    CommitGate,
    RunningDaemon,
    completed,
    progress,
    registered,
    running_daemon,
    status_change,
)
from support.memory import Deciding
from support.samples import ID, job_id
from support.spine import running


class Producer:
    """A local program that reports on jobs."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._unread = b""

    async def send(self, *lines: Any) -> None:
        """Send bytes unchanged and anything else as a line of JSON, in one write."""
        data = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def answer(self) -> Any:
        """Return the next answer."""
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._unread:
                chunk = await self.stream.receive_some()
                assert chunk, "the daemon has closed the connection"
                self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    async def answers_until_closed(self) -> list[Any]:
        """Return all answers until the daemon closes the connection."""
        with trio.fail_after(PATIENCE):
            while chunk := await self.stream.receive_some():
                self._unread += chunk
        return [json.loads(line) for line in self._unread.splitlines()]


@asynccontextmanager
async def producer(running: RunningDaemon) -> AsyncGenerator[Producer]:
    with trio.fail_after(PATIENCE):
        stream = await trio.open_unix_socket(str(running.settings.ingest.socket))
    async with stream:
        yield Producer(stream)


async def test_a_ref_is_answered_with_the_cursor(daemon: RunningDaemon) -> None:
    async with producer(daemon) as program:
        await program.send({"ref": "a", **registered(ID, kind="scan")})
        answer = await program.answer()
        assert (await daemon.daemon.store.jobs([ID]))[ID].kind == "scan"
        assert answer == {"ref": "a", "ok": True, "cursor": answer["cursor"], "job_id": ID}
        assert answer["cursor"] == daemon.daemon.history.cursor((await daemon.daemon.registry.get(ID)).offset)


async def test_nothing_is_answered_before_it_is_durable(tmp_path: Path) -> None:
    gate = CommitGate()
    async with running_daemon(tmp_path, open_store=gate.open_store) as daemon, producer(daemon) as program:
        await program.send({"ref": 1, **registered(ID)})
        with trio.fail_after(PATIENCE):
            await gate.committing.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not program.stream.socket.is_readable()
        assert daemon.daemon.registry.known(ID) is None
        gate.may_commit.set()
        assert (await program.answer())["ok"]


async def test_without_a_ref_only_errors_are_answered(daemon: RunningDaemon) -> None:
    async with producer(daemon) as program:
        await program.send(
            registered(ID), progress(ID, 1), {"type": "dance"}, progress(ID, 2), {"ref": 0, **progress(ID, 3)}
        )
        first, last = await program.answer(), await program.answer()
    assert first["error"].startswith("not an event: ")
    assert {**first, "error": ""} == {"ok": False, "error": "", "status": 400, "line": 3}
    assert (last["ref"], last["ok"]) == (0, True)
    assert (await daemon.daemon.registry.get(ID)).progress.current_step == 3


@pytest.mark.parametrize(
    ("bad", "error", "status"),
    [
        (b"not json\n", "not an event: ", 400),
        (b"\xff\xfe\n", "not an event: ", 400),
        (b"[" * 100_000 + b"\n", "not an event: ", 400),
        (b'{"x":' + b"[" * 100_000 + b"\n", "not an event: ", 400),
        (progress(job_id(9), 1), f"no job {job_id(9)}", 404),
        (progress("me", 1), "'me' is not a job id", 400),
        (completed(ID), f"job {ID} is queued: it must be processing", 409),
        (status_change(ID, "processing", "cancelled"), f"job {ID} is queued, not cancelled", 409),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:30],
)
async def test_a_stream_continues_after_a_bad_line(tmp_path: Path, bad: Any, error: str, status: int) -> None:
    async with running_daemon(tmp_path, ingest={"max_line_bytes": 200_000}) as daemon, producer(daemon) as program:
        await program.send({"ref": 1, **registered(ID)}, b"\n", bad, {"ref": 2, **progress(ID, 1)})
        first, second, third = [await program.answer() for _ in range(3)]
    assert (first["ref"], first["ok"]) == (1, True)
    assert second["error"].startswith(error)
    assert {**second, "error": ""} == {"ok": False, "error": "", "status": status, "line": 3}
    assert (third["ref"], third["ok"]) == (2, True)


async def test_a_store_failure_rejects_the_event_only(tmp_path: Path) -> None:
    class FlakyStore(SQLiteStore):
        refusals = 1

        async def commit(self, *what: Any) -> None:
            if self.refusals:
                self.refusals -= 1
                raise StoreFailed("the store does not take it: the disk is full")
            await super().commit(*what)

    async with running_daemon(tmp_path, open_store=FlakyStore.open) as daemon, producer(daemon) as program:
        await program.send(registered(ID))
        assert await program.answer() == {
            "ok": False,
            "error": "the store does not take it: the disk is full",
            "status": 503,
            "line": 1,
        }
        await program.send({"ref": 1, **registered(ID)})
        assert (await program.answer())["ok"]


async def test_a_thousand_lines_in_one_write_stay_in_order(daemon: RunningDaemon) -> None:
    lines = [progress(ID, step, 1000) for step in range(1, 1001)]
    async with daemon.watch() as watcher, producer(daemon) as program:
        await program.send(registered(ID), *({"ref": number, **line} for number, line in enumerate(lines)))
        answers = [await program.answer() for _ in lines]
        assert [(answer["ref"], answer["ok"]) for answer in answers] == [(number, True) for number in range(1000)]
        offsets = [int(answer["cursor"].rpartition("-")[2]) for answer in answers]
        assert offsets == sorted(set(offsets))
        steps = []
        while not steps or steps[-1] < 1000:
            message = await watcher.receive()
            if message["type"] == "progress":
                steps.append(message["data"]["current_step"])
        assert steps == sorted(steps)
    assert (await daemon.daemon.registry.get(ID)).progress.percent == 100


async def test_answers_follow_a_half_close(daemon: RunningDaemon) -> None:
    async with producer(daemon) as program:
        await program.send({"ref": 1, **registered(ID)}, json.dumps({"ref": 2, **progress(ID, 1)}).encode())
        await program.stream.send_eof()
        answers = await program.answers_until_closed()
    assert [(answer["ref"], answer["ok"]) for answer in answers] == [(1, True), (2, True)]


async def test_a_producer_that_reads_no_answers_delays_nobody(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    batch = b"".join(json.dumps({"ref": "r" * 500, **progress(ID, 2)}).encode() + b"\n" for _ in range(100))
    async with producer(daemon) as deaf:
        with trio.move_on_after(PATIENCE) as stuck:
            while True:
                with trio.move_on_after(0.5) as full:
                    await deaf.stream.send_all(batch)
                if full.cancelled_caught:
                    break
        assert not stuck.cancelled_caught, "nothing holds up a producer that does not read"
        async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
            [answer] = await daemon.report(progress(ID, 77))
            assert answer["ok"]
            messages = await watcher.receive_until("progress")
            while messages[-1]["data"].get("current_step") != 77:
                messages.append(await watcher.receive())


async def test_many_producers_report_at_once(daemon: RunningDaemon) -> None:
    many = 50

    async def work(number: int) -> None:
        async with producer(daemon) as program:
            await program.send({"ref": 0, **registered(job_id(number))})
            await program.answer()
            for step in range(1, 11):
                await program.send({"ref": step, **progress(job_id(number), step, 10)})
                assert (await program.answer())["ok"]
            await program.send({"ref": 99, **completed(job_id(number), page_count=number)})
            assert (await program.answer())["ok"]

    async with trio.open_nursery() as nursery:
        for number in range(many):
            nursery.start_soon(work, number)
    for number in range(many):
        done = await daemon.daemon.registry.get(job_id(number))
        assert (done.status, done.page_count, done.progress.percent) == (JobStatus.COMPLETED, number, 100)


def unlimited(ingest: EventSink | None = None) -> NDJSONReader:
    return NDJSONReader(1 << 20, ingest or Deciding(), max_bad_lines=math.inf)


@given(st.lists(st.sampled_from([b"", b"x", b" ", b"x" * 20_000]), max_size=20), st.lists(st.integers(1, 9)))
async def test_reads_are_bounded_and_lose_no_line(lines: list[bytes], limits: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(b"".join(line + b"\n" for line in lines))
        theirs.shutdown(socket.SHUT_WR)
        numbers = []
        async with trio.open_nursery() as nursery:
            connection = ProducerConnection(ours, nursery, unlimited())
            while not connection.paused:
                most = limits.pop() if limits else TURN_LINES
                if batch := connection.read(most, trio.current_time()):
                    assert len(batch) <= most
                    numbers += [answer.line for answer in batch.answers([], "store")]
    assert numbers == [number for number, line in enumerate(lines, 1) if line.strip()]


@pytest.mark.parametrize(
    ("line", "most"), [(b"\n", MAX_READS * TURN_LINES), (b"x\n", TURN_LINES), (b"{}\n", TURN_LINES)]
)
async def test_many_lines_leave_turns_to_other_tasks(daemon: RunningDaemon, line: bytes, most: int) -> None:
    ours, theirs = socket.socketpair()
    lines, poller, numbers = unlimited(daemon.daemon.ingest), Poller(daemon.daemon.ingest), list[int]()

    async def other() -> None:
        while True:
            numbers.append(lines.next_number)
            await trio.lowlevel.checkpoint()

    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(line * (100_000 // len(line)))
        theirs.shutdown(socket.SHUT_WR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            nursery.start_soon(poller.run)
            with trio.fail_after(PATIENCE):
                await poller.read(ProducerConnection(ours, nursery, lines))
            nursery.cancel_scope.cancel()
    taken = [after - before for before, after in itertools.pairwise(numbers)]
    assert max(taken) <= 2 * most  # the poller may run twice between two turns of the other


async def test_excess_producers_are_rejected_until_one_disconnects(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, ingest={"max_connections": 1}) as daemon:
        async with producer(daemon) as first:
            await first.send({"ref": 1, **registered(ID)})
            assert (await first.answer())["ok"]
            with capture_logs() as logs:
                for _ in range(3):
                    async with producer(daemon) as rejected:
                        assert await rejected.answers_until_closed() == [
                            {
                                "ok": False,
                                "error": "too many producers: 1 are connected (try again later, or raise "
                                "ingest.max_connections)",
                                "status": 503,
                            }
                        ]
            assert [one["log_level"] for one in logs if "too many producers" in one["event"]] == ["warning"]

        async def accepted() -> bool:
            async with producer(daemon) as program:
                with contextlib.suppress(trio.BrokenResourceError):  # rejected before it wrote
                    await program.send({"ref": 2, **progress(ID, 1)})
                return bool((await program.answer())["ok"])

        with trio.fail_after(PATIENCE):
            while not await accepted():
                pass


async def test_an_idle_producer_is_disconnected(store: SQLiteStore, mock_clock: trio.testing.MockClock) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    async def pass_time(seconds: float, sent: bytes = b"") -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(seconds)
        theirs.sendall(sent)
        await trio.testing.wait_all_tasks_blocked(0.01)

    with ours, theirs:
        ours.setblocking(False)
        async with running(store) as spine, trio.open_nursery() as nursery:
            poller = Poller(spine.ingest)
            nursery.start_soon(poller.run)
            connection = ProducerConnection(ours, nursery, unlimited(spine.ingest), idle_timeout=60)
            nursery.start_soon(connection.run, poller)
            for line in (b"\n", b"half", b" of a line\n"):
                await pass_time(50, line)
            assert b"not an event" in theirs.recv(1000)
            await pass_time(59)
            with pytest.raises(BlockingIOError):
                theirs.recv(1000)
            await pass_time(1)
            assert json.loads(theirs.recv(1000)) == {
                "ok": False,
                "error": "connection closed: no data for 1min (send an empty line in time, or raise "
                "ingest.idle_timeout)",
                "status": 408,
            }
            nursery.cancel_scope.cancel()


async def test_a_waiting_producer_is_not_idle(tmp_path: Path) -> None:
    gate = CommitGate()
    async with (
        running_daemon(tmp_path, ingest={"idle_timeout": 1.0}, open_store=gate.open_store) as daemon,
        producer(daemon) as program,
    ):
        await program.send({"ref": 1, **registered(ID)})
        with trio.fail_after(PATIENCE):
            await gate.committing.wait()
            async with producer(daemon) as idle:  # connected later, and gone before
                [closed] = await idle.answers_until_closed()
                assert closed["status"] == 408
        gate.may_commit.set()
        assert (await program.answer())["ok"]
        [closed] = await program.answers_until_closed()
        assert closed["status"] == 408


async def test_only_user_and_group_can_connect(daemon: RunningDaemon) -> None:
    mode = daemon.settings.ingest.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


async def test_lines_before_a_stop_are_processed_and_answered(tmp_path: Path) -> None:
    many, steps = 10, 100
    answers: dict[int, list[Any]] = {}

    async def report(running: RunningDaemon, number: int, written: trio.Event) -> None:
        async with producer(running) as program:
            await program.send(
                {"ref": 0, **registered(job_id(number))},
                *({"ref": step, **progress(job_id(number), step)} for step in range(1, steps + 1)),
            )
            written.set()
            answers[number] = await program.answers_until_closed()
            with pytest.raises(trio.BrokenResourceError):
                await program.send(progress(job_id(number), steps))

    async with running_daemon(tmp_path) as daemon, trio.open_nursery() as nursery:
        written = [trio.Event() for _ in range(many)]
        for number, event in enumerate(written):
            nursery.start_soon(report, daemon, number, event)
        for event in written:
            await event.wait()
        await daemon.stop()
    for number in range(many):
        assert [(one["ref"], one["ok"]) for one in answers[number]] == [(ref, True) for ref in range(steps + 1)]


@pytest.mark.parametrize("ended", [True, False])
async def test_a_line_cut_by_a_stop_is_discarded(ended: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"x\ny")
        if ended:
            theirs.shutdown(socket.SHUT_WR)
        async with trio.open_nursery() as nursery:
            connection = ProducerConnection(ours, nursery, unlimited())
            connection.stop()
            numbers: list[Any] = []
            while not connection.paused:
                if batch := connection.read(TURN_LINES, trio.current_time()):
                    numbers += [answer.line for answer in batch.answers([], "store")]
    assert numbers == ([1, 2] if ended else [1])


async def test_a_stop_does_not_wait_for_unread_answers(
    store: SQLiteStore, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        theirs.sendall(b"nonsense\n" * 1000)
        async with running(store) as spine, trio.open_nursery() as nursery:
            poller = Poller(spine.ingest)
            nursery.start_soon(poller.run)
            connection = ProducerConnection(ours, nursery, unlimited(spine.ingest), stop_timeout=3)
            nursery.start_soon(connection.run, poller)
            await trio.testing.wait_all_tasks_blocked(0.01)
            connection.stop()
            stopped = trio.current_time()
    assert trio.current_time() - stopped == pytest.approx(3)
