"""The order of the queue: the owners of jobs take turns. A key or an address owns a job."""

from collections.abc import Mapping
from pathlib import Path

import httpx
from progressd.core.pipeline import Pipeline
from support import keys
from support.daemon import RunningDaemon, running_daemon
from support.http_client import client_of
from support.submitting import PDF, ended, shell


def logging_pipeline(directory: Path) -> dict[str, Pipeline]:
    """Return a pipeline that logs its job to the file `order`, and ends when the file `go` exists."""
    program = f"echo $PROGRESSD_JOB_ID >>{directory}/order; until [ -e {directory}/go ]; do sleep 0.01; done; exit 3"
    return {"pdf": shell(program)}


def started(directory: Path) -> list[str]:
    """Return the jobs that the pipeline has logged."""
    order = directory / "order"
    return order.read_text().split() if order.exists() else []


async def convert(client: httpx.AsyncClient, headers: Mapping[str, str]) -> str:
    """Submit a file, and return the id of its job."""
    answer = await client.post("/api/convert", files={"file": ("a.pdf", PDF)}, headers=headers)
    return str(answer.json()["job_id"])


async def test_keys_take_turns(tmp_path: Path) -> None:
    given = {"auth": {"required": True}, "runner": {"concurrency": 1}}
    async with (
        running_daemon(tmp_path, pipelines=logging_pipeline(tmp_path), **given) as daemon,
        client_of(daemon) as client,
    ):
        file = daemon.settings.auth.keys_file
        many, few = (keys.bearer(keys.add(file, name, "read", "write")) for name in ("many", "few"))
        daemon.daemon.authenticator.load()
        first, *others = [await convert(client, many) for _ in range(4)]
        last = await convert(client, few)
        (tmp_path / "go").touch()
        for job_id in (*others, last):
            await ended(daemon, job_id)
        assert started(tmp_path) == [first, others[0], last, *others[1:]]
        shown = await client.get("/api/jobs", headers=many)
        assert len(shown.json()["jobs"]) == 5
        assert "owner" not in shown.text
        assert "key:" not in shown.text


async def owner_of(running: RunningDaemon, job_id: str) -> str | None:
    return (await running.daemon.registry.get(job_id)).owner


async def test_without_keys_the_address_owns_a_job(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    given = {"server": {"trusted_proxies": ("127.0.0.1",), "port": 0}}
    async with (
        running_daemon(tmp_path, pipelines=logging_pipeline(tmp_path), **given) as daemon,
        client_of(daemon) as client,
    ):
        first = await convert(client, {"X-Forwarded-For": "192.0.2.1"})
        assert await owner_of(daemon, first) == "address:192.0.2.1"
        await ended(daemon, first)
        again = await client.post(f"/api/jobs/{first}/retry", headers={"X-Forwarded-For": "2001:db8::7:1"})
        assert await owner_of(daemon, again.json()["job_id"]) == "address:2001:db8::/64"
        batch = await client.post("/api/batch", files=[("files[]", ("a.pdf", PDF))])
        jobs = (await client.get(f"/api/batch/{batch.json()['batch_id']}/jobs")).json()["jobs"]
        assert await owner_of(daemon, jobs[0]["job_id"]) == "address:127.0.0.1"
