"""Which watchers get `job_deleted`, and when."""

import json
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trio
from progressd.core.events import RegisterEvent
from progressd.store.base import Deletion
from progressd.store.sqlite import SQLiteStore
from support import keys
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import FORM_TYPE, client_of, file_part, form
from support.keys import bearer
from support.samples import ID, job_id
from support.submitting import PDF, ended, python
from trio_websocket import ConnectionRejected

OTHER = job_id(2)


async def finished(daemon: RunningDaemon, *jobs: str, **fields: object) -> None:
    for job in jobs:
        await daemon.report(registered(job, **fields), progress(job, 1), completed(job))


async def delete(client: httpx.AsyncClient, job: str) -> None:
    assert (await client.delete(f"/api/jobs/{job}?purge=true")).status_code == 200


async def test_watchers_of_all_jobs_get_job_deleted_in_order(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await finished(daemon, ID, labels={"team": "scan"})
    await daemon.report(registered(OTHER))
    async with daemon.watch("/ws/jobs") as watcher, daemon.watch("/ws") as many:
        await watcher.receive_until("job_created")
        await many.websocket.send_message(json.dumps({"type": "subscribe", "topics": ["jobs"]}))
        await many.receive_until("subscribed")
        await delete(client, ID)
        await daemon.report(progress(OTHER, 1))
        told = [await watcher.receive() for _ in range(3)]
        assert [await many.receive() for _ in range(3)] == told
    deleted = told[0]
    assert [message["type"] for message in told] == ["job_deleted", "status_change", "progress"]
    assert deleted["data"] == {"status": "completed", "labels": {"team": "scan"}}
    assert (deleted["job_id"], deleted.keys()) == (ID, {"type", "job_id", "data", "cursor", "time"})
    async with daemon.watch(f"/ws/jobs?since={deleted['cursor']}") as back:
        assert [await back.receive() for _ in range(2)] == told[1:]


async def test_job_deleted_obeys_types_and_comes_once(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await finished(daemon, ID)
    await daemon.report(registered(OTHER))
    async with daemon.watch("/ws/jobs?types=progress") as watcher:
        await delete(client, ID)
        await daemon.report(progress(OTHER, 1))
        assert [(await watcher.receive())["type"] for _ in range(2)] == ["status_change", "progress"]
    async with daemon.watch("/ws/jobs") as watcher:
        assert [message["type"] for message in await watcher.receive_until("progress")] == [
            "job_created",
            "status_change",
            "progress",
        ]


async def test_watchers_of_the_batch_get_job_deleted(tmp_path: Path) -> None:
    waits = python("import sys, time; b'quick' in open(sys.argv[1], 'rb').read() or time.sleep(60)")
    async with running_daemon(tmp_path, pipelines={"pdf": waits}) as daemon, client_of(daemon) as client:
        files = form(file_part(PDF + b"quick", name="files"), file_part(PDF, name="files"))
        batch = (await client.post("/api/batch", content=files, headers=FORM_TYPE)).json()["batch_id"]
        quick, _ = [job["job_id"] for job in (await client.get(f"/api/batch/{batch}/jobs")).json()["jobs"]]
        await ended(daemon, quick)
        async with daemon.watch(f"/ws/batch/{batch}?types=job_deleted") as watcher:
            await delete(client, quick)
            [*_, deleted] = await watcher.receive_until("job_deleted")
        assert (deleted["job_id"], deleted["batch_id"]) == (quick, batch)
        assert (await client.delete(f"/api/batch/{batch}")).status_code == 200


async def test_bound_keys_get_job_deleted_of_visible_jobs(tmp_path: Path) -> None:
    bound = bearer(keys.add(tmp_path / "state/keys.json", "scan", "read", "write", team="scan"))
    everybody = bearer(keys.add(tmp_path / "state/keys.json", "all", "read", "write"))
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        await finished(daemon, ID, labels={"team": "scan"})
        await finished(daemon, OTHER, labels={"team": "print"})
        client.headers.update(everybody)
        async with daemon.watch("/ws/jobs?types=job_deleted", bound) as watcher:
            await delete(client, OTHER)
            client.headers.update(bound)
            await delete(client, ID)
            assert (await watcher.receive())["job_id"] == ID


async def test_the_stream_of_a_deleted_job_returns_404(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await finished(daemon, ID)
    async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
        assert (await watcher.closed())[0] == 1000
        await delete(client, ID)
    with pytest.raises(ConnectionRejected) as rejected:
        async with daemon.watch(f"/ws/jobs/{ID}"):
            pass
    assert rejected.value.status_code == 404
    assert (await client.get(f"/api/jobs/{ID}/events")).status_code == 404


async def test_retention_sends_no_job_deleted(tmp_path: Path) -> None:
    may_delete = trio.Event()

    class ForgetfulStore(SQLiteStore):
        async def delete_finished(self, before: datetime, limit: int) -> list[str]:
            await may_delete.wait()
            return await super().delete_finished(before + timedelta(days=60), limit)

    async with (
        running_daemon(tmp_path, open_store=ForgetfulStore.open) as daemon,
        client_of(daemon) as client,
        daemon.watch("/ws/jobs") as watcher,
    ):
        await finished(daemon, ID)
        await watcher.receive_until("completed")
        may_delete.set()
        while (await client.get(f"/api/jobs/{ID}")).status_code == 200:
            pass
        await daemon.report(registered(OTHER))
        assert (await watcher.receive())["type"] == "job_created"


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_cursor_survives_a_deletion(tmp_path: Path, restarted: bool) -> None:
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        await daemon.report(registered(OTHER))
        async with daemon.watch("/ws/jobs") as watcher:
            cursor = (await watcher.receive_until("job_created"))[-1]["cursor"]
        await finished(daemon, ID, labels={"team": "scan"})
        await daemon.report(progress(OTHER, 1), completed(OTHER))
        await delete(client, ID)
        if not restarted:
            await resumed_past_the_deletion(daemon, cursor)
    if restarted:
        async with running_daemon(tmp_path) as daemon:
            await resumed_past_the_deletion(daemon, cursor)


async def resumed_past_the_deletion(daemon: RunningDaemon, cursor: str) -> None:
    async with daemon.watch(f"/ws/jobs?since={cursor}") as back:
        messages = await back.receive_until("job_deleted")
    assert "resync" not in [message["type"] for message in messages]
    assert [(message["type"], message["job_id"]) for message in messages[-2:]] == [
        ("completed", OTHER),
        ("job_deleted", ID),
    ]
    assert messages[-1]["data"] == {"status": "completed", "labels": {"team": "scan"}}


async def test_an_event_waits_for_few_of_many_deletions(tmp_path: Path) -> None:
    class CountingStore(SQLiteStore):
        deletions = 0
        begun = trio.Event()

        async def delete(self, ids: Collection[str], deletion: Deletion | None = None) -> list[str]:
            CountingStore.deletions += 1
            self.begun.set()
            return await super().delete(ids, deletion)

    jobs = [job_id(number) for number in range(2, 32)]
    async with running_daemon(tmp_path, open_store=CountingStore.open) as daemon, client_of(daemon) as client:
        await finished(daemon, *jobs)
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(delete, client, job)
            await CountingStore.begun.wait()
            before = CountingStore.deletions
            await daemon.daemon.ingest.submit(RegisterEvent(ID))
            assert CountingStore.deletions - before <= 3
    assert CountingStore.deletions == len(jobs)
