"""`WS /ws` with many topics on one socket, and `?types=` and `?interval=` on any stream."""

import json
from pathlib import Path
from typing import Any

import pytest
from progressd.core.events import Registration, SubmitEvent
from support.daemon import RunningDaemon, Watcher, completed, progress, registered, running_daemon, status_change
from support.samples import ID, job_id

OTHER = job_id(2)
UNKNOWN = job_id(99)
BATCH = job_id(50)


async def ask(watcher: Watcher, **request: Any) -> None:
    await watcher.websocket.send_message(json.dumps(request))


async def test_subscribe_is_answered_after_the_replay(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=[f"job:{ID}"])
        replay = await watcher.receive_until("subscribed")
        assert [message["type"] for message in replay] == ["status_change", "progress", "subscribed"]
        assert replay[-1]["topics"] == [f"job:{ID}"]
        await daemon.report(progress(ID, 2), completed(ID))
        live = await watcher.receive_until("completed")
        assert [message["type"] for message in live] == ["progress", "status_change", "completed"]


async def test_the_cursor_of_an_answer_resumes_on_another_connection(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=["jobs"])
        cursor = (await watcher.receive_until("subscribed"))[-1]["cursor"]
    await daemon.report(progress(ID, 2), registered(OTHER))
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=["jobs"], since=cursor)
        missed = await watcher.receive_until("subscribed")
    assert [message["type"] for message in missed] == ["progress", "job_created", "subscribed"]


async def test_a_message_on_two_topics_comes_once_until_unsubscribed(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), registered(OTHER))
    topics = [f"job:{ID}", f"job:{OTHER}"]
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=["jobs", *topics])
        await watcher.receive_until("subscribed")
        await daemon.report(progress(ID, 1), progress(OTHER, 1))
        live = [await watcher.receive() for _ in range(4)]
        assert [message["type"] for message in live] == ["status_change", "progress"] * 2
        await ask(watcher, type="unsubscribe", topics=["jobs", topics[0]])
        assert (await watcher.receive()) == {"type": "unsubscribed", "topics": ["jobs", topics[0]]}
        await daemon.report(progress(ID, 2), progress(OTHER, 2))
        assert (await watcher.receive())["job_id"] == OTHER


async def test_an_unknown_cursor_gets_a_resync(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=[f"job:{ID}"], since="elsewhere-7")
        got = await watcher.receive_until("subscribed")
    assert [message["type"] for message in got] == ["resync", "status_change", "progress", "subscribed"]


async def test_only_unknown_topics_are_rejected(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    unknown = {f"job:{UNKNOWN}": "no job", "job:nonsense": "is not a job id", "weather": "there is no topic"}
    unknown |= {f"job:{job_id(number)}": "no job" for number in range(100, 1000)}
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=[*unknown, f"job:{ID}"])
        *rejected, subscribed = await watcher.receive_until("subscribed")
    assert {answer["topic"] for answer in rejected if answer["type"] == "refused"} == unknown.keys()
    assert all(unknown[answer["topic"]] in answer["error"] for answer in rejected)
    assert subscribed["topics"] == [f"job:{ID}"]


async def test_an_invalid_command_does_not_end_the_connection(daemon: RunningDaemon) -> None:
    empty = '{"type":"subscribe","topics":[]}'
    async with daemon.watch("/ws") as watcher:
        for text in ("", "{", "[]", '{"type":"shout"}', '{"type":"subscribe"}', empty, "[" * 5000):
            await watcher.websocket.send_message(text)
            assert (await watcher.receive())["type"] == "refused"
            await ask(watcher, type="ping")
            assert (await watcher.receive()) == {"type": "pong"}


async def test_a_job_registered_again_comes_with_all_jobs(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=[f"job:{ID}"])
        await watcher.receive_until("subscribed")
        await daemon.report(progress(ID, 1), completed(ID))
        await watcher.receive_until("completed")
        await daemon.daemon.ingest.delete(await daemon.daemon.registry.get(ID))
        await daemon.report(registered(ID), progress(ID, 5))
        await ask(watcher, type="subscribe", topics=["jobs"])
        got = await watcher.receive_until("subscribed")
    assert [message["type"] for message in got] == ["job_created", "status_change", "progress", "subscribed"]


async def test_a_batch_includes_jobs_that_ended_before_it(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon:
        first, second = job_id(1), job_id(2)
        events = [SubmitEvent(id_, Registration("wait"), "gone", BATCH) for id_ in (first, second)]
        daemon.daemon.runner.stop_taking()
        await daemon.daemon.ingest.submit(*events)
        await daemon.report(status_change(first, "cancelled"))
        async with daemon.watch("/ws") as watcher:
            await ask(watcher, type="subscribe", topics=["jobs"])
            assert {message["job_id"] for message in (await watcher.receive_until("subscribed"))[:-1]} == {second}
            await ask(watcher, type="subscribe", topics=[f"batch:{BATCH}"])
            got = await watcher.receive_until("subscribed")
    assert [(message["type"], message.get("job_id")) for message in got] == [
        ("job_created", first),
        ("status_change", first),
        ("batch_progress", None),
        ("subscribed", None),
    ]


async def test_a_connection_has_at_most_1000_topics(daemon: RunningDaemon) -> None:
    ids = [job_id(number) for number in range(1001)]
    await daemon.report(*map(registered, ids))
    async with daemon.watch("/ws") as watcher:
        await ask(watcher, type="subscribe", topics=[f"job:{id_}" for id_ in ids[:1000]])
        assert len((await watcher.receive_until("subscribed"))[-1]["topics"]) == 1000
        await ask(watcher, type="subscribe", topics=[f"job:{ids[1000]}"])
        rejected = await watcher.receive()
    assert (rejected["type"], rejected["topic"]) == ("refused", f"job:{ids[1000]}")


async def test_types_and_interval_keep_changes_and_the_last_progress(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with (
        daemon.watch(f"/ws/jobs/{ID}?types=page_preview") as previews,
        daemon.watch(f"/ws/jobs/{ID}?interval=60") as slow,
    ):
        await daemon.report(*(progress(ID, step) for step in range(1, 50)), completed(ID))
        seen, kept = await previews.rest(), await slow.rest()
    assert [message["type"] for message in seen] == ["status_change", "status_change", "completed"]
    assert [message["data"]["current_step"] for message in kept if message["type"] == "progress"] == [1, 49]
    assert [message["type"] for message in kept][-2:] == ["status_change", "completed"]


@pytest.mark.parametrize("interval", ["5e-324", "1e-310", "1e-17", "1e-9"])
async def test_a_tiny_interval_holds_nothing_back(interval: str, daemon: RunningDaemon) -> None:
    async with daemon.watch(f"/ws/jobs?interval={interval}") as watcher:
        await daemon.report(registered(ID), progress(ID, 1), progress(ID, 2), completed(ID))
        received = await watcher.receive_until("completed")
    assert [one["data"]["current_step"] for one in received if one["type"] == "progress"][-1] == 2


async def test_resuming_sends_the_progress_that_interval_kept_back(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch("/ws/jobs?interval=60") as watcher:
        await watcher.receive_until("progress")
        await daemon.report(progress(ID, 90), registered(OTHER))
        cursor = (await watcher.receive_until("job_created"))[-1]["cursor"]
    async with daemon.watch(f"/ws/jobs?interval=60&since={cursor}") as watcher:
        resumed = await watcher.receive_until("job_created")
    assert [message["data"].get("current_step") for message in resumed] == [90, None]
