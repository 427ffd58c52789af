"""Events from producers over HTTP, and the answers to them."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
import trio
from progressd.core.close_codes import DRAINING
from progressd.core.messages import JobStatus
from progressd.core.pipeline import Pipeline
from progressd.http.routes import report as module
from progressd.producers.ndjson import TURN_LINES, read_line
from support.daemon import (
    PATIENCE,
    RunningDaemon,
    completed,
    progress,
    registered,
    running_daemon,
    status_change,
)
from support.http_client import client_of, error_of, post_pieces
from support.passes import counted
from support.peer import Peer, frame, request
from support.samples import ID, job_id
from support.waiting import eventually, jumping
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

LINES = {"Content-Type": "application/x-ndjson"}
OTHER = job_id(2)


def lines(*events: Any) -> bytes:
    """Return events as lines. Bytes are used unchanged."""
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in events)


def answers_in(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def without_id(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "job_id"}


async def test_one_event_returns_its_cursor(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for event in (registered(ID), status_change(ID, "processing", "queued"), progress(ID, 5, 12), completed(ID)):
        response = await client.post("/api/events", json=event)
        assert response.status_code == 200
        job = await daemon.daemon.registry.get(ID)
        assert response.json() == {"ok": True, "cursor": daemon.daemon.history.cursor(job.offset), "job_id": ID}
    assert job.status is JobStatus.COMPLETED


async def test_a_new_job_without_an_id_returns_its_id(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    response = await client.post("/api/events", json={"type": "job_created", "data": {"kind": "scan"}})
    assert (await daemon.daemon.registry.get(response.json()["job_id"])).kind == "scan"


async def test_other_content_types_are_one_event(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for content_type in ["application/json", "application/json; charset=utf-8", "text/plain", None]:
        headers = {"Content-Type": content_type} if content_type else {}
        response = await client.post("/api/events", content=json.dumps(registered(ID), indent=4), headers=headers)
        assert response.json()["ok"]


async def test_an_event_for_a_job_need_not_name_it(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    url = f"/api/jobs/{ID}/events"
    for event in (registered(ID, kind="scan"), progress(ID, 3, 4), completed(ID)):
        response = await client.post(url.replace(ID, ID.upper()), json=without_id(event))
        assert (response.status_code, response.json()["job_id"]) == (200, ID)
    job = await daemon.daemon.registry.get(ID)
    assert (job.kind, job.status, job.progress.percent) == ("scan", JobStatus.COMPLETED, 75)


async def test_an_event_cannot_name_another_job(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), registered(OTHER))
    rejected = await client.post(f"/api/jobs/{ID}/events", json=progress(OTHER, 1))
    assert rejected.status_code == 400
    assert error_of(rejected) == f"the event is about job '{OTHER}', not {ID}"
    many = await client.post(
        f"/api/jobs/{ID}/events", content=lines(progress(OTHER, 1), progress(ID, 1)), headers=LINES
    )
    assert [answer["ok"] for answer in answers_in(many)] == [False, True]
    assert (await daemon.daemon.registry.get(OTHER)).status is JobStatus.QUEUED


async def test_an_invalid_event_changes_nothing(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 1), completed(ID, page_count=3), registered(OTHER))
    before = [await daemon.daemon.registry.get(one) for one in (ID, OTHER)]
    for event, status, sentence in [
        (progress(ID, 1), 409, "is already completed and accepts no progress"),
        (status_change(ID, "processing", "queued"), 409, "is completed, not queued"),
        (completed(OTHER), 409, "must be processing before it can be completed"),
        (completed(OTHER, output_path="/etc/passwd"), 400, "output_path '/etc/passwd' is not a URL"),
        (progress(job_id(9), 1), 404, f"no job {job_id(9)}"),
        (progress("me", 1), 400, "'me' is not a job id"),
        ({"type": "progress", "job_id": ID, "data": {}}, 400, "not an event"),
        ({"type": "progress", "job_id": ID, "data": {"current_step": "1", "total_steps": 2}}, 400, "not an event"),
        ([], 400, "not an event"),
        (b"\xff\xfe", 400, "not an event"),
        (b'{"type":"completed","job_id":"%b","x":' % ID.encode() + b"[" * 100_000, 400, "not an event"),
        (lines(progress(OTHER, 1), progress(OTHER, 2)), 400, "not an event"),
    ]:
        content = event if isinstance(event, bytes) else json.dumps(event).encode()
        rejected = await client.post("/api/events", content=content)
        assert rejected.status_code == status
        assert sentence in error_of(rejected)
        assert [await daemon.daemon.registry.get(one) for one in (ID, OTHER)] == before


async def test_a_repeated_end_is_accepted(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    first, second = [await client.post("/api/events", json=completed(ID, page_count=3)) for _ in range(2)]
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()


async def test_each_line_is_answered_in_order(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    body = lines(
        {"ref": "a", **registered(ID)},
        b"\n",
        progress(ID, 1),
        b"not json\n",
        progress(job_id(9), 1),
        {"ref": [7], **completed(ID)},
        {"ref": None, **progress(ID, 2)},
    ).rstrip(b"\n")
    created, moved, bad, unknown, done, late = answers_in(await client.post("/api/events", content=body, headers=LINES))
    assert (created["ref"], created["ok"], created["job_id"]) == ("a", True, ID)
    assert moved.keys() == {"ok", "cursor"}
    assert (bad["ok"], bad["line"]) == (False, 4)
    assert unknown == {"ok": False, "error": f"no job {job_id(9)}", "status": 404, "line": 5}
    assert (done["ref"], done["ok"]) == ([7], True)
    assert (late["ref"], late["ok"], late["line"]) == (None, False, 7)
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.COMPLETED


async def test_an_empty_body_has_no_answers(client: httpx.AsyncClient) -> None:
    for body in (b"", b"\n\n"):
        assert answers_in(await client.post("/api/events", content=body, headers=LINES)) == []


async def test_lines_may_be_split_anywhere(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    body = lines({"ref": 0, **registered(ID, input_filename="Bücher.pdf")}, {"ref": 1, **progress(ID, 1)}, b"x\n")
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    answers = answers_in(await post_pieces(client, "/api/events", pieces, LINES))
    assert [(answer.get("ref"), answer["ok"]) for answer in answers] == [(0, True), (1, True), (None, False)]


async def test_watchers_see_lines_during_the_request(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    head = f"POST /api/events HTTP/1.1\r\nHost: progressd\r\nContent-Type: {LINES['Content-Type']}\r\n"
    async with daemon.watch("/ws/jobs") as watcher, await daemon.connect() as stream:
        await stream.send_all(f"{head}Content-Length: 100000\r\n\r\n".encode() + lines(registered(ID), progress(ID, 1)))
        types = [(await watcher.receive())["type"] for _ in range(3)]
    assert types == ["job_created", "status_change", "progress"]


async def test_a_too_long_line_is_rejected_alone(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, ingest={"max_line_bytes": 1024}) as daemon, client_of(daemon) as client:
        body = lines(registered(ID), b"x" * 300_000 + b"\n", progress(ID, 1))
        created, long, moved = answers_in(await client.post("/api/events", content=body, headers=LINES))
        assert created["ok"]
        assert long == {"ok": False, "error": "the line has more than 1024 bytes", "status": 400, "line": 2}
        assert moved["ok"]


async def test_a_too_large_event_is_rejected(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, ingest={"max_line_bytes": 1024}) as daemon, client_of(daemon) as client:
        for pieces, headers in (([b"x" * 1025], {"Content-Length": "1025"}), (repeat(b"x" * 1000), {})):
            rejected = await post_pieces(client, "/api/events", pieces, headers)
            assert rejected.status_code == 413
            assert error_of(rejected) == "the body is larger than 1 KiB, the limit"
        fits = json.dumps(registered(ID)).encode()
        assert (await client.post("/api/events", content=fits.ljust(1024))).status_code == 200


HEAD = request("/api/events", {**LINES, "Transfer-Encoding": "chunked"}, method="POST")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Conversation:
    """A request whose lines are sent one by one, and its response."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._http = h11.Connection(h11.CLIENT)
        self._http.send(h11.Request(method="POST", target="/", headers=[("Host", "daemon")]))
        self._rest = b""

    async def say(self, *events: Any) -> None:
        await self.peer.send(chunk(lines(*events)))

    async def event(self) -> Any:
        """Return the next h11 event other than NEED_DATA."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.peer.receive())
        return event

    async def answers(self, count: int) -> list[dict[str, Any]]:
        """Return the next answers."""
        while self._rest.count(b"\n") < count:
            event = await self.event()
            assert isinstance(event, h11.Data), event
            self._rest += event.data
        *found, self._rest = self._rest.split(b"\n", count)
        return [json.loads(line) for line in found]


@contextlib.asynccontextmanager
async def conversation(daemon: RunningDaemon, *first: Any) -> AsyncGenerator[Conversation]:
    """Start a conversation. The answers to the first lines are still unread."""
    async with Peer(await daemon.connect()) as peer:
        await peer.send(HEAD)
        talk = Conversation(peer)
        await talk.say(*first)
        head = await talk.event()
        assert head.status_code == 200
        yield talk


async def test_lines_are_answered_during_the_request(daemon: RunningDaemon) -> None:
    async with conversation(daemon, registered(ID)) as talk:
        [created] = await talk.answers(1)
        assert (created["ok"], created["job_id"]) == (True, ID)
        for step in (1, 2, 3):
            await talk.say({"ref": step, **progress(ID, step)})
            [moved] = await talk.answers(1)
            assert (moved["ref"], moved["ok"]) == (step, True)
        await talk.say(completed(ID), b"nonsense\n")
        assert [answer["ok"] for answer in await talk.answers(2)] == [True, False]
        await talk.peer.send(b"0\r\n\r\n")
        assert isinstance(await talk.event(), h11.EndOfMessage)
        assert await talk.peer.rest() == b""  # the head announced it, before the size of the body was known
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.COMPLETED


async def test_a_complete_stream_keeps_the_connection_open(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        for step in range(5):
            await peer.send(HEAD + chunk(lines(registered(ID), progress(ID, step))) + b"0\r\n\r\n")
            answered = await peer.response()
            assert (answered.status, answered.body.count(b'"ok":true'), answered.headers.get("connection")) == (
                200,
                2,
                None,
            )


async def test_acknowledged_events_survive_a_disconnect(daemon: RunningDaemon) -> None:
    async with conversation(daemon, registered(ID), progress(ID, 1)) as talk:
        assert [answer["ok"] for answer in await talk.answers(2)] == [True, True]
        await talk.say(progress(ID, 2), b'{"type":"comp')
        await talk.answers(1)
        await talk.peer.reset()
    await eventually(lambda: daemon.daemon.connection_log.open == 0)
    job = await daemon.daemon.registry.get(ID)
    assert (job.status, job.progress.current_step) == (JobStatus.PROCESSING, 2)


UNKNOWN = lines(progress(ID, 1))  # about an unknown job


async def test_too_many_invalid_lines_end_the_stream(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(HEAD + chunk(b"x\n" * 700 + UNKNOWN * 700 + b"x\n" * 10_000))
        *answers, last = [json.loads(line) for line in (await peer.response()).body.splitlines()]
        assert await peer.rest() == b""
    assert [answer["line"] for answer in (*answers, last)] == [*range(1, len(answers) + 2)]
    statuses = [answer["status"] for answer in answers]
    assert statuses[:1400] == [400] * 700 + [404] * 700
    assert 1000 < statuses.count(400) <= 1500
    assert last["error"] == "more than 1000 invalid lines: the rest is ignored"


async def test_unread_answers_above_the_limit_are_discarded(daemon: RunningDaemon) -> None:
    daemon.daemon.services.budget.limit = 500_000
    async with (
        conversation(daemon, registered(OTHER)) as other,
        Peer(await daemon.connect(receive_buffer=4096)) as peer,
    ):
        await peer.send(HEAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.send_all, chunk(UNKNOWN * 50_000))
            await eventually(lambda: daemon.daemon.services.budget.used > 250_000)
            await eventually(lambda: daemon.daemon.services.budget.used < 250_000)
            body = (await peer.response()).body
            nursery.cancel_scope.cancel()
        *before, last = [json.loads(line) for line in body.splitlines()]
        assert [answer["line"] for answer in before] == [*range(1, len(before) + 1)]
        assert len(before) < last["line"] - 1 < 50_000
        assert (last["status"], "answers were discarded" in last["error"]) == (408, True)
        await other.say(progress(OTHER, 1))
        assert [answer["ok"] for answer in await other.answers(2)] == [True, True]
    await eventually(lambda: daemon.daemon.connection_log.open == 0)
    assert daemon.daemon.services.budget.used == 0


async def test_a_client_that_reads_no_answers_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWERS", 100_000)
    async with (
        running_daemon(tmp_path, limits={"idle_timeout": 0.5}) as daemon,
        await daemon.connect(receive_buffer=4096) as stream,
    ):
        await stream.send_all(HEAD)
        sent = 0
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(PATIENCE):
            while sent < 20_000_000:
                await stream.send_all(chunk(UNKNOWN * 200))
                sent += len(UNKNOWN) * 200
        assert sent < 20_000_000
        await eventually(lambda: daemon.daemon.connection_log.open == 0)


async def test_answers_may_be_read_after_the_last_line(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    """Send far more lines than the kernel buffers answers for, for longer than the idle timeout."""
    count, stall = 30_000, daemon.settings.limits.idle_timeout
    async with await daemon.connect(receive_buffer=4096) as stream:
        await stream.send_all(HEAD)
        await stream.send_all(chunk(UNKNOWN * count + lines(registered(ID))))
        await eventually(lambda: ID in daemon.daemon.registry.unfinished)
        unfinished = daemon.daemon.registry.unfinished
        for step in range(1, 21):
            await wait_all_tasks_blocked()
            slow_clock.jump(stall / 10)
            await stream.send_all(chunk(lines(progress(ID, step))))
            await eventually(lambda step=step: unfinished[ID].progress.current_step == step)  # type: ignore[misc]
        await stream.send_all(b"0\r\n\r\n")
        received = b""
        with trio.fail_after(PATIENCE):
            while piece := await stream.receive_some(1 << 20):
                received += piece
    assert received.endswith(b"\r\n0\r\n\r\n")
    assert received.count(b'"ok":false') > count - 100  # chunk framing splits a few


async def test_a_silent_producer_gets_408(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    async with conversation(daemon, registered(ID)) as talk:
        await talk.answers(1)
        await jumping(slow_clock, 10, lambda: daemon.daemon.connection_log.open == 0)
        [last] = await talk.answers(1)
        assert last == {"ok": False, "error": "the body stopped: nothing arrived for 60 s", "status": 408, "line": 2}
        assert isinstance(await talk.event(), h11.EndOfMessage)
        assert await talk.peer.rest() == b""
    async with Peer(await daemon.connect()) as peer:
        await peer.send(HEAD)
        await eventually(lambda: daemon.daemon.connection_log.open == 1)
        await jumping(slow_clock, 10, lambda: daemon.daemon.connection_log.open == 0)
        assert (await peer.response()).status == 408


async def test_a_shutdown_names_the_first_unaccepted_line(daemon: RunningDaemon) -> None:
    async with conversation(daemon, registered(ID)) as talk, Peer(await daemon.connect()) as silent:
        await talk.answers(1)
        await silent.send(HEAD)
        await eventually(lambda: daemon.daemon.connection_log.open == 2)
        daemon.kill()
        stopping = {"ok": False, "error": "the daemon is stopping", "status": 503, "line": 2}
        assert await talk.answers(1) == [stopping]
        assert isinstance(await talk.event(), h11.EndOfMessage)
        assert await talk.peer.rest() == b""
        assert (await silent.response()).status == 503
    with trio.fail_after(PATIENCE):
        await daemon.stopped.wait()


async def test_a_shutdown_adds_no_answer_to_a_whole_body(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    responses = []

    async def report() -> None:
        responses.append(await client.post("/api/events", content=lines(registered(ID)), headers=LINES))

    async with trio.open_nursery() as nursery:
        with closing(sqlite3.connect(daemon.settings.state_dir / "progressd.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # blocks the write
            nursery.start_soon(report)
            await eventually(lambda: daemon.daemon.connection_log.open == 1)
            await wait_all_tasks_blocked(0.01)
            daemon.daemon.streams.close(DRAINING)
    assert [answer["ok"] for answer in answers_in(responses[0])] == [True]


async def test_a_producer_cannot_end_a_runners_job(tmp_path: Path) -> None:
    forever = Pipeline(("{python}", "-c", "import time; time.sleep(60)"), accept=("*/*",))
    async with running_daemon(tmp_path, pipelines={"wait": forever}) as daemon, client_of(daemon) as client:
        submitted = await client.post("/api/convert?pipeline=wait", files={"file": ("a.txt", b"text")})
        path = f"/api/jobs/{submitted.json()['job_id']}"
        response = await client.post(f"{path}/events", json={"type": "error", "data": {"message": "no paper"}})
        assert response.status_code == 409
        assert (await client.delete(path)).json()["status"] == "cancelled"


@pytest.mark.parametrize("path", ["/api/events", "/ws/publish"])
async def test_few_lines_are_read_in_one_pass(daemon: RunningDaemon, path: str) -> None:
    producers, count = 8, 2 * TURN_LINES
    sent = lines(*[progress(ID, step) for step in range(count)])

    async def report() -> None:
        async with Peer(await daemon.connect()) as peer:
            if path == "/ws/publish":
                await peer.open(path)
                await peer.send(frame(Opcode.TEXT, sent))
                for _ in range(count):
                    await peer.next_frame()
            else:
                headers = {**LINES, "Content-Length": str(len(sent))}
                await peer.send(request(path, headers, method="POST") + sent)
                assert len((await peer.response()).body.splitlines()) == count

    with counted(read_line) as read:
        async with trio.open_nursery() as nursery:
            for _ in range(producers):
                nursery.start_soon(report)
    assert read.total == producers * count
    assert read.most <= 2 * TURN_LINES
