"""The log of a job over the Unix socket, HTTP and WebSocket: written by producers, read by watchers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from progressd.core.log_text import LogText
from progressd.engine.log_reader import MAX_TEXT
from support import keys
from support.daemon import PATIENCE, RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import client_of
from support.passes import counted
from support.samples import ID, job_id
from support.waiting import eventually

LOG = f"/api/jobs/{ID}/log"
OTHER = job_id(2)


def ended() -> list[dict[str, Any]]:
    return [progress(ID, 1), completed(ID)]


def written(text: str, job: str = ID, **data: Any) -> dict[str, Any]:
    return {"type": "log", "job_id": job, "data": {"text": text, **data}}


async def texts(client: httpx.AsyncClient, query: str = "") -> str:
    response = await client.get(LOG + query)
    assert response.status_code == 200, response.text
    return response.text


def lines_of(messages: list[Any]) -> list[str]:
    assert {message["type"] for message in messages} <= {"log"}
    return [line["text"] for message in messages for line in message["data"]["lines"]]


async def events_of(client: httpx.AsyncClient, query: str = "", **headers: str) -> AsyncIterator[tuple[str, Any]]:
    """Yield the id and the data of each server-sent event."""
    async with client.stream("GET", f"{LOG}/events{query}", headers=headers) as response:
        assert response.status_code == 200
        id_ = ""
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                id_ = line[4:]
            if line.startswith("data: "):
                yield id_, json.loads(line[6:])


@pytest.mark.parametrize("way", ["socket", "events", "job", "ndjson"])
async def test_a_producer_writes_lines_in_every_way(way: str, daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    event = written("a\nb", stream="stderr", time="2026-01-31T12:00:00.5Z")
    if way == "socket":
        answers = await daemon.report(registered(ID), event)
        assert [answer["ok"] for answer in answers] == [True, True]
    else:
        await daemon.report(registered(ID))
        path = {"events": "/api/events", "job": f"/api/jobs/{ID}/events", "ndjson": "/api/events"}[way]
        kind = "application/x-ndjson" if way == "ndjson" else "application/json"
        answer = await client.post(path, content=json.dumps(event), headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
    assert await texts(client) == "a\nb\n"
    assert await texts(client, "?times=true") == "2026-01-31T12:00:00.500Z a\n2026-01-31T12:00:00.500Z b\n"


async def test_a_websocket_writes_lines(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    async with daemon.watch("/ws/publish") as producer:
        lines = [registered(ID), written("one"), progress(ID, 1), written("two")]
        await producer.websocket.send_message("\n".join([json.dumps({**line, "ref": 0}) for line in lines]))
        assert [(await producer.receive())["ok"] for _ in lines] == [True] * 4
    assert await texts(client) == "one\ntwo\n"


async def test_lines_neither_reach_watchers_nor_change_jobs(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    offset = daemon.daemon.broadcaster.offset
    async with daemon.watch() as watcher:
        await watcher.receive_until("job_created")
        await daemon.report(written("hidden"))
        assert daemon.daemon.broadcaster.offset == offset
        await daemon.report(progress(ID, 1))
        assert [message["type"] for message in await watcher.receive_until("progress")] == ["status_change", "progress"]


async def test_only_a_known_job_accepts_late_lines(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    answers = await daemon.report(registered(ID), *ended(), written("late"), written("lost", OTHER))
    assert [answer["ok"] for answer in answers] == [True, True, True, True, False]
    assert (answers[4]["status"], answers[4]["error"]) == (404, f"no job {OTHER}")
    assert await texts(client) == "late\n"
    assert (await client.get(f"/api/jobs/{OTHER}/log")).status_code == 404


async def test_repeated_lines_are_written_once(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    first, second = (written(text, source="ab", seq=number) for number, text in [(1, "a"), (2, "b")])
    await daemon.report(registered(ID), first, second, first, second, written("a", source="cd", seq=1))
    assert await texts(client) == "a\nb\na\n"


async def test_text_is_selected_by_lines_time_or_offset(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    days = [written(f"\x1b[31mday {day}\x1b[m", time=f"2026-01-0{day}T00:00:00+00:00") for day in range(1, 6)]
    await daemon.report(registered(ID), *days)
    assert await texts(client, "?tail=2") == "day 4\nday 5\n"
    assert await texts(client, "?tail=0") == ""
    assert await texts(client, "?tail=1&ansi=true") == "\x1b[31mday 5\x1b[m\n"
    assert await texts(client, "?since=2026-01-04T00:00:00Z") == "day 4\nday 5\n"
    assert await texts(client, "?since=2026-01-05") == "day 5\n"
    assert await texts(client, "?since=10m") == ""
    assert await texts(client, "?offset=0") == "".join([f"day {day}\n" for day in range(1, 6)])
    for given, status, body in [
        ("0-2", 206, "day"),
        ("-3", 206, " 5\n"[-3:]),
        ("24-", 206, "day 5\n"),
        ("99-", 416, ""),
    ]:
        response = await client.get(LOG, headers={"Range": f"bytes={given}"})
        assert response.status_code == status
        assert not body or response.text == body
    head = await client.head(LOG)
    assert (head.status_code, head.headers["content-type"], head.text) == (200, "text/plain; charset=utf-8", "")


async def test_a_range_of_a_long_log_is_converted_in_short_parts(
    daemon: RunningDaemon, client: httpx.AsyncClient
) -> None:
    line = "\x1b[1m" + "x" * 4090
    await daemon.report(registered(ID), *[written("\n".join([line] * 50)) for _ in range(5)])
    whole = f"{line[4:]}\n" * 250
    with counted(LogText.lines) as head:
        assert (await client.head(LOG, headers={"Range": "bytes=5-"})).status_code == 200
    with counted(LogText.lines) as calls:
        response = await client.get(LOG, headers={"Range": "bytes=5-"})
    assert (response.status_code, response.text == whole[5:]) == (206, True)
    assert response.headers["content-range"] == f"bytes 5-{len(whole) - 1}/{len(whole)}"
    assert head.total == 0
    assert calls.total > 2 * len(whole) / MAX_TEXT  # once to measure the text, and once to send it
    assert calls.most <= 4
    several = await client.get(LOG, headers={"Range": "bytes=0-1,5-6"})
    assert (several.status_code, several.text == whole) == (200, True)


async def test_a_range_of_a_log_that_grows_ends_where_it_was_measured(
    daemon: RunningDaemon, client: httpx.AsyncClient
) -> None:
    await daemon.report(registered(ID), written("a\nb"))
    async with client.stream("GET", f"{LOG}?tail=1", headers={"Range": "bytes=0-"}) as response:
        await daemon.report(written("c"))
        assert await response.aread() == b"b\n"


@pytest.mark.parametrize(
    "query", ["tail=x", "since=tomorrow", "offset=-1", "tail=1&offset=0", "follow=maybe", "lines=1"]
)
async def test_an_invalid_query_is_rejected(query: str, daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    assert (await client.get(f"{LOG}?{query}")).status_code == 400
    assert (await daemon.rejected(f"/ws/jobs/{ID}/log?{query}")).status_code == 400


async def test_curl_follows_until_the_log_is_complete(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), written("before"))
    with trio.fail_after(PATIENCE):
        async with client.stream("GET", f"{LOG}?follow=true") as response:
            received = response.aiter_text()
            assert await anext(received) == "before\n"
            await daemon.report(written("live", partial=True))
            assert await anext(received) == "live"
            await daemon.report(*ended(), written(" and late"))
            assert "".join([text async for text in received]) == " and late\n"


async def test_a_websocket_resumes_at_any_offset(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), *[written(f"{number}") for number in range(1200)])
    async with daemon.watch(f"/ws/jobs/{ID}/log") as watcher:
        messages = [await watcher.receive()]
        while lines_of(messages)[-1] != "1199":
            messages.append(await watcher.receive())
        assert lines_of(messages) == [str(number) for number in range(200, 1200)]
        await daemon.report(written("live", stream="stderr"), *ended())
        live = await watcher.receive()
        assert (live["job_id"], live["data"]["lines"][0]["s"]) == (ID, "e")
        assert await watcher.closed() == (1000, "job finished")
    for message in messages[:2]:
        after = [*lines_of(messages[messages.index(message) + 1 :]), "live"]
        async with daemon.watch(f"/ws/jobs/{ID}/log?offset={message['data']['offset']}") as watcher:
            assert lines_of(await watcher.rest()) == after


async def test_server_sent_events_resume_and_end(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), written("one"))
    with trio.fail_after(PATIENCE):
        ids, seen = list[str](), list[Any]()
        async for id_, message in events_of(client):
            ids.append(id_)
            seen.append(message)
            if len(seen) == 1:
                await daemon.report(written("two"), *ended())
        assert (lines_of(seen), ids) == (["one", "two"], [str(message["data"]["offset"]) for message in seen])
        resumed = [message async for _, message in events_of(client, **{"Last-Event-ID": ids[0]})]
        assert lines_of(resumed) == ["two"]
    over = await client.get(f"{LOG}/events", headers={"Last-Event-ID": ids[-1]})
    assert over.status_code == 204


async def test_logs_are_topics_beside_others(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), registered(OTHER), written("old"), written("mine"))
    async with daemon.watch("/ws") as watcher:
        topics = [f"job:{OTHER}", f"log:{ID}", f"log:{job_id(9)}"]
        await watcher.websocket.send_message(json.dumps({"type": "subscribe", "topics": topics, "tail": 1}))
        refused, subscribed, lines = [await watcher.receive() for _ in range(3)]
        assert (refused["type"], refused["topic"]) == ("refused", topics[2])
        assert subscribed["topics"] == topics[:2]
        assert lines_of([lines]) == ["mine"]
        await daemon.report(written("live"), written("not subscribed", OTHER))
        assert lines_of([await watcher.receive()]) == ["live"]
        await watcher.websocket.send_message(json.dumps({"type": "unsubscribe", "topics": [f"log:{ID}"]}))
        assert (await watcher.receive())["type"] == "unsubscribed"
        await daemon.report(written("nobody"), progress(OTHER, 1))
        assert (await watcher.receive())["type"] == "status_change"


async def test_a_subscription_with_two_beginnings_is_rejected(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with daemon.watch("/ws") as watcher:
        both = {"type": "subscribe", "topics": [f"log:{ID}"], "offset": 0, "tail": 1}
        await watcher.websocket.send_message(json.dumps(both))
        assert (await watcher.receive())["error"] == "give only one of offset and tail"
        await watcher.websocket.send_message(json.dumps({"type": "ping"}))
        assert (await watcher.receive())["type"] == "pong"


async def test_many_large_logs_do_not_disconnect_a_client(tmp_path: Path) -> None:
    jobs, lines = [job_id(number) for number in range(1, 21)], ["x" * 15_000] * 2
    async with running_daemon(tmp_path, limits={"send_buffer_bytes": 2**16}) as daemon:
        answers = await daemon.report(*map(registered, jobs), *(written("\n".join(lines), job) for job in jobs))
        assert all(answer["ok"] for answer in answers)  # also those just after the registrations
        async with daemon.watch("/ws", receive_buffer=32768) as watcher:
            topics = [f"log:{job}" for job in jobs]
            await watcher.websocket.send_message(json.dumps({"type": "subscribe", "topics": topics}))
            assert (await watcher.receive())["type"] == "subscribed"
            received = list[str]()
            while len(received) < len(jobs) * len(lines):
                received += lines_of([await watcher.receive()])
            assert received == lines * len(jobs)


async def test_only_a_key_reads_a_log(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.json"
    path.parent.mkdir()
    reader, writer, bound = (
        keys.add(path, "reader"),
        keys.add(path, "writer", "write"),
        keys.add(path, "bound", team="a"),
    )
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID), written("secret"))
        assert (await client.get(LOG)).status_code == 401
        assert (await client.get(LOG, headers=keys.bearer(reader))).text == "secret\n"
        assert (await client.get(LOG, headers=keys.bearer(writer))).status_code == 403
        assert (await client.get(LOG, headers=keys.bearer(bound))).status_code == 404
        made = (await client.post(f"/api/jobs/{ID}/token", headers=keys.bearer(reader))).json()["token"]
        for end in ("", "/events", "/lines"):
            assert (await client.get(f"{LOG}{end}?token={made}")).status_code == 403
        shown = (await client.post(f"/api/jobs/{ID}/token?log=true", headers=keys.bearer(reader))).json()["token"]
        assert (await client.get(f"{LOG}?token={shown}")).text == "secret\n"
        async with daemon.watch(f"/ws/jobs/{ID}/log?token={shown}") as watcher:
            assert lines_of([await watcher.receive()]) == ["secret"]
        assert (await daemon.rejected(f"/ws/jobs/{ID}/log?token={made}")).status_code == 403
        async with daemon.watch(f"/ws?token={made}") as watcher:
            await watcher.websocket.send_message(json.dumps({"type": "subscribe", "topics": [f"log:{ID}"]}))
            assert (await watcher.receive())[
                "error"
            ] == "this watch token does not show logs: use a key, or a token with log=true"


async def test_a_deletion_removes_the_log_and_its_watchers(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), written("x"), *ended())
    directory = daemon.daemon.files.logs.directory(ID)
    await eventually(lambda: daemon.daemon.files.usage.total > 0)
    async with daemon.watch(f"/ws/jobs/{ID}/log") as watcher:
        await watcher.receive()
        assert (await client.delete(f"/api/jobs/{ID}?purge=true")).status_code == 200
        assert (await watcher.closed())[0] in (1000, 4501)
    assert not directory.parent.exists()
    assert daemon.daemon.files.usage.total == 0
    assert (await daemon.report(written("gone")))[0]["status"] == 404
    assert not directory.parent.exists()


async def test_the_stream_of_an_empty_log_begins(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    with trio.fail_after(PATIENCE):
        async with client.stream("GET", f"{LOG}/events") as response:
            assert response.status_code == 200


async def paged(client: httpx.AsyncClient, limit: int) -> tuple[list[str], int]:
    """Return all lines of the log, read backwards, and the missing bytes."""
    found, before, missed = list[str](), "", 0
    while True:
        page = (await client.get(f"{LOG}/lines?limit={limit}{before}")).json()
        lines = [line["text"] for part in page["parts"] for line in part["lines"]]
        found = [*lines, *found]
        missed += sum(part.get("missed", 0) for part in page["parts"])
        if page["begin"] == 0:
            return found, missed
        before = f"&before={page['begin']}"


async def test_a_viewer_reads_a_log_backwards(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    empty = (await client.get(f"{LOG}/lines")).json()
    assert empty == {"begin": 0, "end": 0, "parts": []}
    texts_ = ["\n".join(f"{number}.{line}" for line in range(number % 4 + 1)) for number in range(12)]
    await daemon.report(*[written(text, stream="stderr" if "3" in text else "stdout") for text in texts_])
    lines = "\n".join(texts_).split("\n")
    for limit in (1, 2, 7, 100):
        assert await paged(client, limit) == (lines, 0)
    newest = (await client.get(f"{LOG}/lines?limit=2")).json()
    assert [line["text"] for part in newest["parts"] for line in part["lines"]] == lines[-2:]
    await daemon.report(written("later"))
    async with daemon.watch(f"/ws/jobs/{ID}/log?offset={newest['end']}") as watcher:
        assert lines_of([await watcher.receive()]) == ["later"]


async def test_a_gap_is_counted_once_backwards(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        daemon.daemon.files.logs.max_bytes = 40_000
        await daemon.report(registered(ID))
        for number in range(40):
            await daemon.report(written("\n".join(f"{number:03}-{line:02} {'x' * 40}" for line in range(50))))
        lines, missed = await paged(client, 60)
        assert lines == sorted(lines)
        assert (lines[0][:6], lines[-1][:6]) == ("000-00", "039-49")
        assert await paged(client, 20_000) == (lines, missed)
        assert f"[progressd: {missed} bytes of the log are missing here]" in await texts(client)
