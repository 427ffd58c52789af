"""`/api/batch`: many files in one request."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from progressd.core.pipeline import Pipeline
from progressd.store.base import Filter
from support.daemon import RunningDaemon, running_daemon
from support.http_client import FORM_TYPE, client_of, error_of, file_part, form, options_part
from support.samples import job_id
from support.submitting import PDF, shell
from trio_websocket import ConnectionRejected

IDLE = Pipeline(("sleep", "60"), accept=("*/*",))
PAIR = [("files[]", ("a.pdf", PDF)), ("files", ("Bücher.pdf", PDF))]


async def submitted(client: httpx.AsyncClient, count: int, pipeline: str = "idle", **options: Any) -> str:
    """Submit a batch of so many files. Returns its id."""
    response = await client.post(
        f"/api/batch?pipeline={pipeline}",
        files=[("files[]", (f"{number}.pdf", PDF)) for number in range(count)],
        data={"options": json.dumps(options)},
    )
    assert response.status_code == 202, response.text
    return str(response.json()["batch_id"])


async def ended(daemon: RunningDaemon, batch_id: str) -> list[Any]:
    """Return the messages of a batch until its end."""
    async with daemon.watch(f"/ws/batch/{batch_id}") as watcher:
        messages = await watcher.rest()
        assert await watcher.closed() == (1000, "batch finished")
    return messages


async def test_files_become_a_batch_of_jobs(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"pdf": shell("true")}) as daemon, client_of(daemon) as client:
        response = await client.post("/api/batch", files=PAIR)
        assert response.status_code == 202
        body = response.json()
        assert body.keys() == {"batch_id", "status", "job_count", "created_at"}
        assert (body["status"], body["job_count"]) == ("queued", 2)
        messages = await ended(daemon, body["batch_id"])
        assert messages[-1]["type"] == "batch_completed"
        assert messages[-1]["data"] == {"success_count": 2, "failed_count": 0, "cancelled_count": 0}
        batch = (await client.get(f"/api/batch/{body['batch_id']}")).json()
        jobs = (await client.get(f"/api/batch/{body['batch_id']}/jobs")).json()
        one = (await client.get(f"/api/jobs/{jobs['jobs'][1]['job_id']}")).json()
    assert batch.pop("cursor") == messages[-1]["cursor"]
    assert batch.keys() == {
        *("batch_id", "status", "priority", "progress", "created_at", "started_at", "completed_at"),
    }
    assert (batch["status"], batch["priority"]) == ("completed", "normal")
    assert batch["progress"] == dict.fromkeys(("processing", "pending", "failed", "cancelled"), 0) | {
        "completed": 2,
        "total": 2,
    }
    assert [(job["filename"], job["status"], job["progress"].keys()) for job in jobs["jobs"]] == [
        (name, "completed", {"percent", "step_name"}) for name in ("a.pdf", "Bücher.pdf")
    ]
    assert (one["batch_id"], one["priority"]) == (body["batch_id"], "normal")


async def test_a_batch_lists_result_urls(tmp_path: Path) -> None:
    copy = Pipeline(("cp", "{input}", "{output}"), accept=("*/*",), output="result.pdf")
    async with running_daemon(tmp_path, pipelines={"copy": copy}) as daemon, client_of(daemon) as client:
        batch_id = await submitted(client, 1, "copy")
        await ended(daemon, batch_id)
        [job] = (await client.get(f"/api/batch/{batch_id}/jobs")).json()["jobs"]
        assert job["download_url"] == f"/api/jobs/{job['job_id']}/download"
        assert (await client.get(job["download_url"])).content == PDF


async def test_every_job_gets_the_labels(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    files = [("files", ("a.pdf", PDF)), ("files", ("b.pdf", PDF))]
    response = await client.post("/api/batch", files=files, data={"labels": '{"team": "scan"}'})
    assert response.status_code == 202, response.text
    jobs, total = await daemon.daemon.store.list_jobs(Filter(labels=(("team", "scan"),)), 10, 0)
    assert (total, {job.input_filename for job in jobs}) == (2, {"a.pdf", "b.pdf"})


async def test_jobs_with_higher_priority_run_first(tmp_path: Path) -> None:
    pipelines = {"wait": shell("cat $0.go > /dev/null || sleep 60"), "quick": shell("true")}
    async with (
        running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1}) as daemon,
        client_of(daemon) as client,
        daemon.watch("/ws/jobs?types=status_change") as watcher,
    ):
        blocking = await submitted(client, 1, "wait")
        while (await watcher.receive())["data"].get("new_status") != "processing":
            pass
        batches = [
            await submitted(client, 2, "quick", priority=priority) for priority in ("low", "normal", "high", "normal")
        ]
        await client.delete(f"/api/batch/{blocking}")
        started: list[str] = []
        while len(started) < 8:
            message = await watcher.receive()
            if message["data"].get("new_status") == "processing":
                started.append(message["batch_id"])
    low, normal, high, second = batches
    assert started == [high, high, normal, normal, second, second, low, low]


async def test_cancelling_a_batch_stops_its_jobs(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, pipelines={"idle": IDLE}, runner={"concurrency": 1}) as daemon,
        client_of(daemon) as client,
    ):
        batch_id = await submitted(client, 3)
        response = await client.delete(f"/api/batch/{batch_id}")
        assert response.json() == {
            "batch_id": batch_id,
            "status": "cancelled",
            "cancelled_jobs": 3,
            "completed_jobs": 0,
        }
        assert (await ended(daemon, batch_id))[-1]["data"]["cancelled_count"] == 3
        again = await client.delete(f"/api/batch/{batch_id}")
        assert (again.status_code, error_of(again)) == (409, f"batch {batch_id} is already cancelled")


async def test_a_batch_continues_after_a_restart(tmp_path: Path) -> None:
    async with (
        running_daemon(
            tmp_path, pipelines={"pdf": IDLE}, runner={"concurrency": 1}, shutdown={"wait_for_jobs": False}
        ) as daemon,
        client_of(daemon) as client,
    ):
        batch_id = await submitted(client, 3, "pdf", priority="high")
    async with running_daemon(tmp_path, pipelines={"pdf": shell("true")}) as daemon, client_of(daemon) as client:
        await ended(daemon, batch_id)
        batch = (await client.get(f"/api/batch/{batch_id}")).json()
    assert (batch["status"], batch["priority"], batch["progress"]["completed"]) == ("completed", "high", 3)


async def test_different_ends_make_a_batch_partially_completed(tmp_path: Path) -> None:
    fails_at_b = shell('case "$(cat $0)" in *bad*) exit 3;; esac', accept=("*/*",))
    async with running_daemon(tmp_path, pipelines={"pdf": fails_at_b}) as daemon, client_of(daemon) as client:
        files = [("files", ("a.pdf", PDF)), ("files", ("b.pdf", PDF + b"bad"))]
        batch_id = (await client.post("/api/batch", files=files)).json()["batch_id"]
        end = (await ended(daemon, batch_id))[-1]["data"]
        batch = (await client.get(f"/api/batch/{batch_id}")).json()
    assert end == {"success_count": 1, "failed_count": 1, "cancelled_count": 0}
    assert batch["status"] == "partially_completed"


async def test_one_invalid_file_rejects_the_batch(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for parts, status, sentence in [
        ([], 400, "the form has no file: send one in the field files[]"),
        ([file_part(name="file")], 400, "the form has no file: send one in the field files[]"),
        ([file_part(name="files")] * 101, 413, "the batch has too many files: send at most 100 together"),
        ([file_part(name="files"), file_part(b"text", "b.txt", "files")], 415, "b.txt is not a PDF"),
        ([file_part(name="files"), options_part({"priority": "urgent"})], 422, 'option priority: "urgent" is not one'),
        ([file_part(name="files"), options_part({"priority": 1})], 422, "option priority: 1 is not one of low, normal"),
        ([file_part(name="files"), options_part({"dpi": "many"})], 422, "option dpi"),
        ([file_part(name="files"), options_part(b"[]")], 422, "the field options"),
    ]:
        rejected = await client.post("/api/batch", content=form(*parts), headers=FORM_TYPE)
        assert (rejected.status_code, sentence in error_of(rejected)) == (status, True), rejected.text
        assert await daemon.daemon.store.list_jobs(Filter(), 10, 0) == ([], 0)
        assert not any((daemon.settings.state_dir / "jobs").iterdir())
        assert not any((daemon.settings.state_dir / "uploads").iterdir())


async def test_an_unknown_batch_returns_404(client: httpx.AsyncClient) -> None:
    for method, path in [("GET", ""), ("GET", "/jobs"), ("DELETE", "")]:
        unknown = await client.request(method, f"/api/batch/{job_id(9)}{path}")
        assert (unknown.status_code, error_of(unknown)) == (404, f"no batch {job_id(9)}")
        malformed = await client.request(method, f"/api/batch/monday{path}")
        assert (malformed.status_code, "'monday' is not a batch id" in error_of(malformed)) == (400, True)


async def test_an_unknown_batch_cannot_be_watched(daemon: RunningDaemon) -> None:
    for path, status in [(f"/ws/batch/{job_id(9)}", 404), ("/ws/batch/monday", 400)]:
        with pytest.raises(ConnectionRejected) as rejected:
            async with daemon.watch(path):
                pass
        assert rejected.value.status_code == status


async def test_a_multiplexed_socket_can_watch_a_batch(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"idle": IDLE}) as daemon, client_of(daemon) as client:
        batch_id = await submitted(client, 2)
        async with daemon.watch("/ws") as watcher:
            topics = [f"batch:{batch_id}", "jobs"]
            await watcher.websocket.send_message(json.dumps({"type": "subscribe", "topics": topics}))
            before = await watcher.receive_until("subscribed")
            assert before[-1]["topics"] == topics
            assert len({json.dumps(message) for message in before}) == len(before)
            await client.delete(f"/api/batch/{batch_id}")
            after = await watcher.receive_until("batch_completed")
    assert [message["type"] for message in after[-2:]] == ["batch_progress", "batch_completed"]
    cancelled = [message for message in after if message["data"].get("new_status") == "cancelled"]
    assert len(cancelled) == 2  # each once, although both topics have it


async def test_a_resumed_watcher_gets_only_new_messages(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"idle": IDLE}) as daemon, client_of(daemon) as client:
        batch_id = await submitted(client, 2)
        async with daemon.watch(f"/ws/batch/{batch_id}") as watcher:
            while (message := await watcher.receive())["data"].get("processing") != 2:
                pass
        await client.delete(f"/api/batch/{batch_id}")
        async with daemon.watch(f"/ws/batch/{batch_id}?since={message['cursor']}") as watcher:
            types = [message["type"] for message in await watcher.rest()]
    assert types[-4:] == ["status_change"] * 2 + ["batch_progress", "batch_completed"]


ODD = 'case "$(cat "$0")" in *bad*) exit 1;; esac; cp "$0" "$1"'  # fails for a file that contains "bad"
SORTING = {"sort": Pipeline(("sh", "-c", ODD, "{input}", "{output}"), accept=("*/*",), output="x.txt")}


async def test_a_finished_batch_is_downloaded_retried_and_deleted(tmp_path: Path) -> None:
    contents = [("a.pdf", b"one"), ("A.pdf", b"two"), ("dir/a.pdf", b"three"), ("b.pdf", b"bad"), ("..", b"four")]
    async with running_daemon(tmp_path, pipelines=SORTING) as daemon, client_of(daemon) as client:
        files = [("files", (name, content)) for name, content in contents]
        key = {"Idempotency-Key": "again"}
        name = {"name": "Bücher/März"}
        response = await client.post("/api/batch?pipeline=sort", files=files, data=name, headers=key)
        url = f"/api/batch/{response.json()['batch_id']}"
        await ended(daemon, response.json()["batch_id"])
        batch = (await client.get(url)).json()
        assert (batch["name"], batch["status"]) == ("Bücher/März", "partially_completed")

        archive = await client.get(f"{url}/download")
        assert archive.headers["Content-Type"] == "application/zip"
        assert "filename*=UTF-8''B%C3%BCcher%2FM%C3%A4rz.zip" in archive.headers["Content-Disposition"]
        with zipfile.ZipFile(io.BytesIO(archive.content)) as found:
            assert found.testzip() is None
            results = {name: found.read(name) for name in found.namelist()}
            assert min(info.date_time[0] for info in found.infolist()) > 2000
        assert results == {"a.txt": b"one", "A (2).txt": b"two", "a (3).txt": b"three", "...txt": b"four"}
        head = await client.head(f"{url}/download")
        assert (head.status_code, head.content) == (200, b"")

        retried = await client.post(f"{url}/retry", headers=key)  # another request, although the key is the same
        assert (retried.status_code, retried.json()["job_count"]) == (202, 1)
        again = retried.json()["batch_id"]
        await ended(daemon, again)
        assert (await client.post(f"{url}/retry", headers=key)).json() == retried.json()
        assert (await client.get(f"/api/batch/{again}")).json()["name"] == "Bücher/März"
        [job] = (await client.get(f"/api/batch/{again}/jobs")).json()["jobs"]
        assert (job["filename"], job["status"]) == ("b.pdf", "failed")
        rejected = await client.get(f"/api/batch/{again}/download")
        assert (rejected.status_code, "no results" in error_of(rejected)) == (409, True)

        deleted = await client.delete(url, params={"purge": "true"})
        assert (deleted.status_code, deleted.json()["deleted_jobs"]) == (200, 5)
        assert (await client.get(url)).status_code == 404
        assert (await client.get("/api/jobs")).json()["total"] == 1
        assert len(list((daemon.settings.state_dir / "jobs").iterdir())) == 1


async def test_an_unfinished_batch_is_neither_retried_nor_deleted(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, pipelines={"idle": IDLE}, shutdown={"wait_for_jobs": False}) as daemon,
        client_of(daemon) as client,
    ):
        url = f"/api/batch/{await submitted(client, 2)}"
        assert (await client.post(f"{url}/retry")).status_code == 409
        assert (await client.delete(url, params={"purge": "true"})).status_code == 409
        assert (await client.delete(url)).status_code == 200
        again = (await client.post(f"{url}/retry")).json()  # its cancelled jobs
        assert again["job_count"] == 2
        long = await client.post("/api/batch?pipeline=idle", files=PAIR, data={"name": "x" * 256})
        assert (long.status_code, error_of(long)) == (400, "the name of the batch has more than 255 characters")


async def test_a_result_that_disappears_aborts_the_download(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines=SORTING) as daemon, client_of(daemon) as client:
        response = await client.post("/api/batch?pipeline=sort", files=PAIR)
        batch_id = response.json()["batch_id"]
        await ended(daemon, batch_id)
        jobs = (await client.get(f"/api/batch/{batch_id}/jobs")).json()["jobs"]
        first, second = (daemon.daemon.files.output(job["job_id"]) for job in jobs)
        os.truncate(first, 64 << 20)  # more than the sockets hold
        async with client.stream("GET", f"/api/batch/{batch_id}/download") as answer:
            pieces = answer.aiter_raw()
            assert (await anext(pieces))[:2] == b"PK"
            second.unlink()
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in pieces:
                    pass
