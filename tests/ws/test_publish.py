"""`WS /ws/publish`: lines in messages, the answers to them, and how it ends."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from progressd.core.status import JobStatus
from support.daemon import PATIENCE, RunningDaemon, Watcher, completed, progress, registered, running_daemon
from support.keys import add, bearer, revoke
from support.peer import Peer, close_frame, frame, upgrade
from support.samples import ID, job_id
from support.waiting import eventually
from trio_websocket import ConnectionClosed, ConnectionRejected
from wsproto.frame_protocol import Opcode

PATH = "/ws/publish"
OTHER = job_id(2)
NONSENSE = 1001 + 500  # lines, after which no more are read for sure


def lines(*events: Any) -> str:
    return "\n".join(one if isinstance(one, str) else json.dumps(one) for one in events)


async def say(producer: Watcher, *events: Any) -> None:
    """Events as the lines of one message."""
    await producer.websocket.send_message(lines(*events))


async def answers(producer: Watcher, count: int) -> list[Any]:
    return [await producer.receive() for _ in range(count)]


async def test_a_line_a_message_and_an_answer_each(daemon: RunningDaemon) -> None:
    async with daemon.watch(PATH) as producer:
        for number, event in enumerate([registered(ID), progress(ID, 1), completed(ID)]):
            await say(producer, {"ref": number, **event})
            [answer] = await answers(producer, 1)
            assert (answer["ref"], answer["ok"]) == (number, True)
            assert answer["cursor"] == daemon.daemon.history.cursor((await daemon.daemon.registry.get(ID)).offset)
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.COMPLETED


async def test_it_speaks_as_a_stream_of_lines_over_http_does(daemon: RunningDaemon) -> None:
    said = [
        {"ref": "a", **registered(ID)},
        "",
        progress(ID, 1),
        "not json",
        progress(job_id(9), 1),
        {"ref": [7], **completed(ID)},
        {"ref": None, **progress(ID, 2)},
    ]
    async with daemon.watch(PATH) as producer:
        await say(producer, *said)
        created, moved, bad, unknown, done, late = await answers(producer, 6)
        assert (created["ref"], created["ok"], created["job_id"]) == ("a", True, ID)
        assert moved.keys() == {"ok", "cursor"}
        assert (bad["ok"], bad["status"], bad["line"]) == (False, 400, 4)
        assert unknown == {"ok": False, "error": f"no job {job_id(9)}", "status": 404, "line": 5}
        assert (done["ref"], done["ok"]) == ([7], True)
        assert (late["ref"], late["ok"], late["status"], late["line"]) == (None, False, 409, 7)
        await say(producer, "nonsense\n")  # a line end at the end begins no other line
        await say(producer, "more of it")
        assert [answer["line"] for answer in await answers(producer, 2)] == [8, 9]


async def test_a_new_job_without_an_id_is_answered_with_its_id(daemon: RunningDaemon) -> None:
    async with daemon.watch(PATH) as producer:
        await say(producer, {"type": "job_created", "data": {"kind": "backup"}})
        [answer] = await answers(producer, 1)
    assert (await daemon.daemon.registry.get(answer["job_id"])).kind == "backup"


async def test_watchers_see_what_comes(daemon: RunningDaemon) -> None:
    async with daemon.watch("/ws/jobs") as watcher, daemon.watch(PATH) as producer:
        await say(producer, registered(ID), progress(ID, 1), completed(ID))
        assert (await watcher.receive_until("completed"))[-1]["job_id"] == ID


async def test_a_message_may_be_binary_and_in_pieces_cut_anywhere(daemon: RunningDaemon) -> None:
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
            told = [await peer.next_frame() for _ in range(len(pieces) + 2)]
            assert [json.loads(said)["ok"] for opcode, said in told if opcode is Opcode.TEXT] == [True, True]
    assert (await daemon.daemon.registry.get(ID)).kind == "Bücher"


async def test_a_message_may_be_longer_than_a_watchers_and_a_line_too_long_is_named(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, ingest={"max_line_bytes": 1024}, limits={"max_message_bytes": 1024}) as daemon,
        daemon.watch(PATH) as producer,
    ):
        await say(producer, registered(ID), "x" * 300_000, *(progress(ID, step) for step in range(100)))
        created, long, *moved = await answers(producer, 102)
        assert created["ok"]
        assert long == {"ok": False, "error": "the line has more than 1024 bytes", "status": 400, "line": 2}
        assert all(answer["ok"] for answer in moved)
        await say(producer, "x" * 2000)  # without a line end: its message ends it
        await say(producer, progress(ID, 100))
        long, moved_on = await answers(producer, 2)
        assert (long["line"], moved_on["ok"]) == (103, True)


async def test_who_says_all_and_closes_at_once_gets_every_answer_before_the_close(daemon: RunningDaemon) -> None:
    events = [registered(ID), *(progress(ID, step, 2000) for step in range(2000)), completed(ID)]
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, frame(Opcode.TEXT, lines(*events).encode()) + close_frame(1000))
            told = []
            while (got := await peer.next_frame())[0] is not Opcode.CLOSE:
                told.append(json.loads(got[1])["ok"])
        assert got[1][0] == 1000
    assert told == [True] * len(events)
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.COMPLETED


async def test_the_lines_of_who_vanishes_are_taken_but_for_a_message_without_its_end(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        whole = frame(Opcode.TEXT, lines(registered(ID), progress(ID, 1)).encode())
        cut = frame(Opcode.TEXT, lines(completed(ID)).encode(), final=False)
        await peer.send(whole + cut)
        await peer.stream.send_eof()
        assert [json.loads((await peer.next_frame())[1])["ok"] for _ in range(2)] == [True, True]
        assert await peer.rest() == b""
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.PROCESSING


async def test_nonsense_is_not_read_for_ever(daemon: RunningDaemon) -> None:
    async with daemon.watch(PATH) as producer:
        await say(producer, *["x"] * 10_000)
        *told, last = await producer.rest()
        assert (await producer.closed()) == (4502, "too many bad lines")
    assert [answer["line"] for answer in (*told, last)] == [*range(1, len(told) + 2)]
    assert 1000 < len(told) <= NONSENSE
    assert last["error"] == "more than 1000 invalid lines: the rest is ignored"


async def test_what_is_against_the_protocol_is_told_behind_the_answers(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        await peer.send(frame(Opcode.TEXT, lines(registered(ID)).encode()) + frame(Opcode.TEXT, b"\xff"))
        opcode, told = await peer.next_frame()
        assert (opcode, json.loads(told)["ok"]) == (Opcode.TEXT, True)
        assert await peer.close_code() == 1007


async def test_who_reads_no_answers_is_read_no_further_and_disturbs_nobody(daemon: RunningDaemon) -> None:
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
        [websocket] = daemon.daemon.watchers._open
        await eventually(lambda: websocket.outbox.congested)
        async with daemon.watch(PATH) as other:
            await say(other, registered(OTHER), completed(OTHER))
            assert [answer["ok"] for answer in await answers(other, 2)] == [True, False]
        reached = -1
        while reached != (reached := sent):  # what the kernel takes is in once nothing happens any more
            await trio.testing.wait_all_tasks_blocked(0.1)
        assert daemon.daemon.watchers.budget.used < 1 << 20
        for _ in range(200 * reached):  # once it reads on, it is read on
            await peer.next_frame()
        await eventually(lambda: sent > reached)
        nursery.cancel_scope.cancel()


async def test_a_drain_answers_what_has_come_and_says_why_it_closes(daemon: RunningDaemon) -> None:
    async with daemon.watch(PATH) as producer:
        await say(producer, *(registered(job_id(number)) for number in range(500)))
        await producer.receive()
        daemon.kill()
        told = await producer.rest()
        assert (await producer.closed()) == (1001, "draining")
        assert sum(answer.get("type") == "server_shutdown" for answer in told) == 1
    with trio.fail_after(PATIENCE):
        await daemon.stopped.wait()
    assert 1 + sum(answer.get("ok", False) for answer in told) == len(daemon.daemon.registry.unfinished)


async def test_lines_go_on_being_taken_while_jobs_end_and_none_is_lost_without_a_word(daemon: RunningDaemon) -> None:
    """A producer that goes on while the daemon drains knows of each line whether it was taken."""
    said = taken = 0
    async with daemon.watch(PATH) as producer:
        await say(producer, registered(ID))
        await producer.receive()

        async def go_on() -> None:
            nonlocal said
            with contextlib.suppress(ConnectionClosed):
                while True:
                    said += 1
                    await say(producer, progress(ID, said, 1_000_000))

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
    assert (await daemon.daemon.registry.get(ID)).progress.current_step == taken <= said


async def test_a_silent_producer_is_given_up(tmp_path: Path) -> None:
    limits = {"heartbeat_interval": 0.05, "connection_timeout": 0.3}
    async with running_daemon(tmp_path, limits=limits) as daemon, Peer(await daemon.connect()) as peer:
        await peer.open(PATH)
        assert await peer.close_code() == 4001


async def test_a_producer_takes_one_of_the_places(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_connections": 1}) as daemon, daemon.watch(PATH):
        with pytest.raises(ConnectionRejected) as refused:
            async with daemon.watch(PATH):
                pass
        assert refused.value.status_code == 503
        assert len(daemon.daemon.watchers) == 1


async def test_the_handshake_is_one_request_and_a_line_is_none(tmp_path: Path) -> None:
    limits = {"rate_limit_per_minute": 1, "rate_limit_burst": 1, "exempt_addresses": ()}
    async with running_daemon(tmp_path, limits=limits) as daemon, daemon.watch(PATH) as producer:
        await say(producer, registered(ID), *(progress(ID, step) for step in range(20)))
        assert all(answer["ok"] for answer in await answers(producer, 21))
        with pytest.raises(ConnectionRejected) as refused:
            async with daemon.watch(PATH):
                pass
        assert refused.value.status_code == 429


@pytest.mark.parametrize(("origin", "host"), [("http://evil.example", "daemon"), ("", "evil.example")])
async def test_pages_of_other_sites_report_nothing(daemon: RunningDaemon, origin: str, host: str) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(upgrade(PATH, {"Origin": origin, "Host": host}))
        assert (await peer.response()).status == 403


async def test_under_a_base_path(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, server={"base_path": "/progress"}) as daemon,
        daemon.watch(f"/progress{PATH}") as producer,
    ):
        await say(producer, registered(ID))
        assert (await producer.receive())["ok"]


async def test_a_key_bound_to_labels_reports_on_its_jobs_and_ends_with_it(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, auth={"required": True}) as daemon:
        await daemon.report(registered(OTHER))
        file = daemon.settings.auth.keys_file
        headers = bearer(add(file, "scan", "write", team="scan"))
        daemon.daemon.authenticator.load()
        async with daemon.watch(PATH, headers) as producer:
            await say(producer, registered(ID), progress(OTHER, 1), progress(ID, 1))
            created, foreign, moved = await answers(producer, 3)
            assert (created["ok"], moved["ok"]) == (True, True)
            assert foreign == {"ok": False, "error": f"no job {OTHER}", "status": 404, "line": 2}
            assert (await daemon.daemon.registry.get(ID)).labels == {"team": "scan"}
            revoke(file, "scan")
            daemon.daemon.authenticator.load()
            assert await producer.closed() == (4500, "credentials expired")


async def test_nothing_of_a_producer_is_left(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    before = await daemon.settled()
    for _ in range(3):
        async with daemon.watch(PATH) as producer:
            await say(producer, progress(ID, 1))
            await producer.receive()
        async with Peer(await daemon.connect()) as peer:
            await peer.open(PATH)
            await peer.send(frame(Opcode.TEXT, lines(*[progress(ID, 1)] * 500).encode()))
            await peer.reset()
    await daemon.leaves_only(before)
