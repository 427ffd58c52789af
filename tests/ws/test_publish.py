"""`WS /ws/publish`: lines in messages, answers and ends."""

import contextlib
import json
from pathlib import Path
from typing import Any

import trio
import trio.testing
from progressd.core.messages import JobStatus
from support.daemon import PATIENCE, RunningDaemon, Watcher, completed, progress, registered, running_daemon
from support.keys import add, bearer, revoke
from support.peer import Peer, close_frame, frame
from support.samples import ID, job_id
from support.waiting import eventually
from trio_websocket import ConnectionClosed
from wsproto.frame_protocol import Opcode

PATH = "/ws/publish"
OTHER = job_id(2)
MAX_INVALID = 1001 + 500  # lines that are read at most


def lines(*events: Any) -> str:
    return "\n".join(one if isinstance(one, str) else json.dumps(one) for one in events)


async def report(producer: Watcher, *events: Any) -> None:
    """Send events as the lines of one message."""
    await producer.websocket.send_message(lines(*events))


async def answers(producer: Watcher, count: int) -> list[Any]:
    return [await producer.receive() for _ in range(count)]


async def test_lines_are_answered_as_over_http(daemon: RunningDaemon) -> None:
    sent = [
        {"ref": "a", **registered(ID)},
        "",
        progress(ID, 1),
        "not json",
        progress(job_id(9), 1),
        {"ref": [7], **completed(ID)},
        {"ref": None, **progress(ID, 2)},
    ]
    async with daemon.watch(PATH) as producer:
        await report(producer, *sent)
        created, moved, bad, unknown, done, late = await answers(producer, 6)
        assert (created["ref"], created["ok"], created["job_id"]) == ("a", True, ID)
        assert done["cursor"] == daemon.daemon.history.cursor((await daemon.daemon.registry.get(ID)).offset)
        assert moved.keys() == {"ok", "cursor"}
        assert (bad["ok"], bad["status"], bad["line"]) == (False, 400, 4)
        assert unknown == {"ok": False, "error": f"no job {job_id(9)}", "status": 404, "line": 5}
        assert (done["ref"], done["ok"]) == ([7], True)
        assert (late["ref"], late["ok"], late["status"], late["line"]) == (None, False, 409, 7)
        await report(producer, "nonsense\n")  # a line end at the end starts no new line
        await report(producer, "more of it")
        assert [answer["line"] for answer in await answers(producer, 2)] == [8, 9]


async def test_a_message_may_be_binary_and_in_fragments(daemon: RunningDaemon) -> None:
    text = lines(registered(ID, kind="Bücher"), progress(ID, 1)).encode()
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        pieces = [text[start : start + 7] for start in range(0, len(text), 7)]
        for kind in (Opcode.TEXT, Opcode.BINARY):
            for place, piece in enumerate(pieces):
                opcode = Opcode.CONTINUATION if place else kind
                await peer.send(
                    frame(opcode, piece, final=place == len(pieces) - 1) + frame(Opcode.PING, b"%d" % place)
                )
            frames = [await peer.next_frame() for _ in range(len(pieces) + 2)]
            assert [json.loads(text)["ok"] for opcode, text in frames if opcode is Opcode.TEXT] == [True, True]
    assert (await daemon.daemon.registry.get(ID)).kind == "Bücher"


async def test_a_message_may_be_longer_than_a_line(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, ingest={"max_line_bytes": 1024}, limits={"max_message_bytes": 1024}) as daemon,
        daemon.watch(PATH) as producer,
    ):
        await report(producer, registered(ID), "x" * 300_000, *(progress(ID, step) for step in range(100)))
        created, long, *moved = await answers(producer, 102)
        assert created["ok"]
        assert long == {"ok": False, "error": "the line has more than 1024 bytes", "status": 400, "line": 2}
        assert all(answer["ok"] for answer in moved)
        await report(producer, "x" * 2000)  # without a line end: the message ends it
        await report(producer, progress(ID, 100))
        long, moved_on = await answers(producer, 2)
        assert (long["line"], moved_on["ok"]) == (103, True)


async def test_every_answer_comes_before_the_close(daemon: RunningDaemon) -> None:
    events = [registered(ID), *(progress(ID, step, 2000) for step in range(2000)), completed(ID)]
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, frame(Opcode.TEXT, lines(*events).encode()) + close_frame(1000))
            received = []
            while (got := await peer.next_frame())[0] is not Opcode.CLOSE:
                received.append(json.loads(got[1])["ok"])
        assert got[1][0] == 1000
    assert received == [True] * len(events)
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.COMPLETED


async def test_an_incomplete_message_is_dropped(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        whole = frame(Opcode.TEXT, lines(registered(ID), progress(ID, 1)).encode())
        cut = frame(Opcode.TEXT, lines(completed(ID)).encode(), final=False)
        await peer.send(whole + cut)
        await peer.stream.send_eof()
        assert [json.loads((await peer.next_frame())[1])["ok"] for _ in range(2)] == [True, True]
        assert await peer.rest() == b""
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.PROCESSING


async def test_a_thousand_invalid_lines_end_the_connection(daemon: RunningDaemon) -> None:
    async with daemon.watch(PATH) as producer:
        await report(producer, *["x"] * 10_000)
        *received, last = await producer.rest()
        assert (await producer.closed()) == (4502, "too many bad lines")
    assert [answer["line"] for answer in (*received, last)] == [*range(1, len(received) + 2)]
    assert 1000 < len(received) <= MAX_INVALID
    assert last["error"] == "more than 1000 invalid lines: the rest is ignored"


async def test_a_protocol_error_closes_after_the_answers(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        await peer.send(frame(Opcode.TEXT, lines(registered(ID)).encode()) + frame(Opcode.TEXT, b"\xff"))
        opcode, answer = await peer.next_frame()
        assert (opcode, json.loads(answer)["ok"]) == (Opcode.TEXT, True)
        assert await peer.close_code() == 1007


async def test_unread_answers_stop_reading_and_delay_no_other_producer(daemon: RunningDaemon) -> None:
    unknown = frame(Opcode.TEXT, lines(*[progress(ID, 1)] * 200).encode())
    sent = 0
    async with Peer(await daemon.connect(receive_buffer=4096)) as peer, trio.open_nursery() as nursery:
        await peer.open(PATH)

        async def flood() -> None:
            nonlocal sent
            while True:
                await peer.stream.send_all(unknown)
                sent += 1

        nursery.start_soon(flood)
        await eventually(lambda: daemon.daemon.websockets.budget.used)
        async with daemon.watch(PATH) as other:
            await report(other, registered(OTHER), completed(OTHER))
            assert [answer["ok"] for answer in await answers(other, 2)] == [True, False]
        reached = -1
        while reached != (reached := sent):  # what the kernel takes is in once nothing happens any more
            await trio.testing.wait_all_tasks_blocked(0.1)
        assert daemon.daemon.websockets.budget.used < 1 << 20
        for _ in range(200 * reached):  # once it reads on, it is read on
            await peer.next_frame()
        await eventually(lambda: sent > reached)
        nursery.cancel_scope.cancel()


async def test_each_line_during_a_drain_is_answered(daemon: RunningDaemon) -> None:
    sent = taken = 0
    async with daemon.watch(PATH) as producer:
        await report(producer, registered(ID))
        await producer.receive()

        async def go_on() -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionClosed):
                while True:
                    sent += 1
                    await report(producer, progress(ID, sent, 1_000_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            for _ in range(100):
                taken += (await producer.receive())["ok"]
            daemon.kill()
            taken += sum(answer.get("ok", False) for answer in await producer.rest())
            nursery.cancel_scope.cancel()
        assert (await producer.closed())[0] == 1001
    with trio.fail_after(PATIENCE):
        await daemon.stopped.wait()
    assert (await daemon.daemon.registry.get(ID)).progress.current_step == taken <= sent


async def test_only_the_handshake_counts_as_a_request(tmp_path: Path) -> None:
    limits = {"rate_limit_per_minute": 1, "rate_limit_burst": 1, "exempt_addresses": ()}
    async with running_daemon(tmp_path, limits=limits) as daemon, daemon.watch(PATH) as producer:
        await report(producer, registered(ID), *(progress(ID, step) for step in range(20)))
        assert all(answer["ok"] for answer in await answers(producer, 21))
        assert (await daemon.rejected(PATH)).status_code == 429


async def test_a_key_with_labels_reports_only_its_jobs(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, auth={"required": True}) as daemon:
        await daemon.report(registered(OTHER))
        file = daemon.settings.auth.keys_file
        headers = bearer(add(file, "scan", "write", team="scan"))
        daemon.daemon.authenticator.load()
        async with daemon.watch(PATH, headers) as producer:
            await report(producer, registered(ID), progress(OTHER, 1), progress(ID, 1))
            created, foreign, moved = await answers(producer, 3)
            assert (created["ok"], moved["ok"]) == (True, True)
            assert foreign == {"ok": False, "error": f"no job {OTHER}", "status": 404, "line": 2}
            assert (await daemon.daemon.registry.get(ID)).labels == {"team": "scan"}
            revoke(file, "scan")
            daemon.daemon.authenticator.load()
            assert await producer.closed() == (4500, "credentials expired")
