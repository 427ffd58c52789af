"""The details of progress through every way in and out: units, rates, phases, tasks, the timeline and the queue."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import client_of, error_of
from support.samples import ID
from support.submitting import cancel, running_job, shell, submit
from support.waiting import eventually
from trio.testing import MockClock

NDJSON = {"Content-Type": "application/x-ndjson"}


def task(id_: str, current: int, **more: Any) -> dict[str, Any]:
    return {"id": id_, "current": current, **more}


def detailed(**data: Any) -> dict[str, Any]:
    return {"type": "progress", "job_id": ID, "data": data}


DELTAS = (
    detailed(
        phase="Pull", tasks=[task("a", 10, total=100, unit="B", name="Layer a"), task("b", 0, total=100, unit="B")]
    ),
    detailed(tasks=[task("b", 60)]),
    detailed(tasks=[task("a", 100, state="completed")]),
)
MERGED = [
    {"id": "a", "name": "Layer a", "current": 100, "total": 100, "state": "completed", "unit": "B"},
    {"id": "b", "name": "b", "current": 60, "total": 100, "state": "processing", "unit": "B"},
]


async def over_the_socket(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(*DELTAS)


async def one_by_one(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for event in DELTAS:
        assert (await client.post(f"/api/jobs/{ID}/events", json=event)).is_success


async def as_lines(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/events", content="\n".join(map(json.dumps, DELTAS)), headers=NDJSON)
    assert answer.text.count('"ok":true') == len(DELTAS)


async def over_a_websocket(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    async with daemon.watch("/ws/publish") as producer:
        await producer.websocket.send_message("\n".join(json.dumps({"ref": 1, **event}) for event in DELTAS))
        for _ in DELTAS:
            assert (await producer.receive())["ok"]


@pytest.mark.parametrize("way", [over_the_socket, one_by_one, over_a_websocket, as_lines])
async def test_tasks_are_merged_on_every_way(way: Any, daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    async with daemon.watch("/ws/jobs") as watcher:
        await way(daemon, client)
        live = {}
        while live.get("data", {}).get("percent") != 80:
            live = await watcher.receive()
    expected = {"phase": "Pull", "percent": 80, "unit": "B", "tasks": MERGED}
    assert {name: live["data"][name] for name in expected} == expected
    job = (await client.get(f"/api/jobs/{ID}")).json()
    [listed] = (await client.get("/api/jobs")).json()["jobs"]
    async with daemon.watch(f"/ws/jobs/{ID}") as late:  # the newest message has all tasks
        *_, snapshot = [await late.receive(), await late.receive()]
    for shown in (job["progress"], listed["progress"], snapshot["data"]):
        assert {name: shown[name] for name in expected} == expected
    assert "steps" in job
    assert "steps" not in listed


async def test_too_many_tasks_are_rejected_without_loss(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), detailed(tasks=[task(f"{number}", 1, total=2) for number in range(32)]))
    answer = await client.post(f"/api/jobs/{ID}/events", json=detailed(tasks=[task("one more", 1)]))
    assert (answer.status_code, error_of(answer)) == (
        409,
        "task 'one more' is one too many: a job has at most 32 unfinished tasks",
    )
    answer = await client.post(f"/api/jobs/{ID}/events", json=detailed(tasks=[task(f"{n}", 1) for n in range(33)]))
    assert (answer.status_code, "length <= 32" in error_of(answer)) == (400, True)
    answer = await client.post(f"/api/jobs/{ID}/events", json=detailed(step_name="Scan"))
    assert (answer.status_code, "missing required field `current_step`" in error_of(answer)) == (400, True)
    assert (await client.get(f"/api/jobs/{ID}")).json()["progress"]["percent"] == 50


async def test_the_timeline_lives_as_long_as_its_job(tmp_path: Path) -> None:
    unit = {"unit": "pages"}
    async with running_daemon(tmp_path) as daemon:
        await daemon.report(registered(ID), detailed(current_step=0, total_steps=9, step_name="Read", **unit))
        async with client_of(daemon) as client:
            before: dict[str, Any] = {"steps": []}
            while len(before["steps"]) < 2:  # the first step lasts at least 0.1 s
                await daemon.report(progress(ID, 0, 9, "Read"), progress(ID, 5, 9, "Write"))
                before = (await client.get(f"/api/jobs/{ID}")).json()
    assert [step["step_name"] for step in before["steps"]] == ["Read", "Write"]
    assert before["steps"][0].keys() == {"step_name", "started_at", "ended_at", "unit", "rate"}
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        after = (await client.get(f"/api/jobs/{ID}")).json()
        assert (after["steps"], after["progress"]) == (before["steps"], before["progress"])
        await daemon.report(completed(ID))
        daemon.daemon.registry._forget(ID)  # so that the store answers
        ended = (await client.get(f"/api/jobs/{ID}")).json()
        assert ended["steps"][-1]["ended_at"] == ended["completed_at"]
        assert "rate" not in ended["progress"]
        [listed] = (await client.get("/api/jobs")).json()["jobs"]
        assert "steps" not in listed
        assert (await client.delete(f"/api/jobs/{ID}?purge=true")).is_success
    with closing(sqlite3.connect(tmp_path / "state" / "progressd.db")) as db:
        assert db.execute("SELECT count(*) FROM timelines").fetchone() == (0,)


async def test_a_waiting_job_has_its_position(slow_clock: MockClock, tmp_path: Path) -> None:
    pipelines = {"wait": shell("sleep 100")}
    async with (
        running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1}) as daemon,
        client_of(daemon) as client,
    ):

        async def position(job_id: str) -> int | None:
            slow_clock.jump(1)  # positions are valid for a second
            answer = await client.get(f"/api/jobs/{job_id}")
            known = await client.get(f"/api/jobs/{job_id}", headers={"If-None-Match": answer.headers["ETag"]})
            assert known.status_code == 304
            listed = {job["id"]: job for job in (await client.get("/api/jobs")).json()["jobs"]}
            place: int | None = answer.json().get("queue_position")
            assert listed[job_id].get("queue_position") == place
            return place

        first = await running_job(daemon, "wait")
        waiting = [await submit(daemon, "wait") for _ in range(3)]
        assert [await position(job_id) for job_id in (first, *waiting)] == [None, 1, 2, 3]
        await cancel(daemon, waiting[0])
        assert [await position(job_id) for job_id in waiting] == [None, 1, 2]
        await cancel(daemon, first)

        def runs() -> bool:
            job: Job | None = daemon.daemon.registry.known(waiting[1])
            return job is not None and job.status is JobStatus.PROCESSING

        await eventually(runs)
        assert [await position(job_id) for job_id in waiting] == [None, None, 1]
        for job_id in waiting[1:]:
            await cancel(daemon, job_id)
