"""Health, liveness and readiness."""

from pathlib import Path

import httpx
import progressd
import trio
from progressd.core.pipeline import Option
from support.daemon import PATIENCE, running_daemon
from support.http_client import client_of
from support.submitting import running_job, shell
from support.waiting import eventually


async def test_health_has_the_version_and_default_options(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/health")
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"status", "version", "tools", "pipelines"}
    assert (body["status"], body["version"]) == ("healthy", progressd.__version__)
    defaults = {"dpi": 300, "deskew": True, "upscale": True, "ocr": False, "advanced": False}
    assert body["pipelines"]["pdf"]["options"] == defaults


async def test_health_lists_installed_programs(tmp_path: Path) -> None:
    def needs(*programs: str) -> dict[str, Option]:
        return {f"option-{number}": Option("boolean", False, needs=one) for number, one in enumerate(programs)}

    pipelines = {
        "pdf": shell("true", options=needs("sh")),
        "other": shell("true", options=needs("sh", "no-such-program")),
        "third": shell("true"),
    }
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon, client_of(daemon) as client:
        assert (await client.get("/api/health")).json()["tools"] == {"sh": True, "no-such-program": False}


async def test_a_stopping_daemon_is_live_but_not_ready(tmp_path: Path) -> None:
    go = tmp_path / "go"
    pipelines = {"pdf": shell(f"until [ -e {go} ]; do sleep 0.01; done")}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon:
        async with client_of(daemon) as client:
            ready = await client.get("/api/health/ready")
            assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
            await running_job(daemon, "pdf")
            daemon.kill()
            await eventually(lambda: not daemon.daemon.services.ready)
            ready = await client.get("/api/health/ready")
            assert (ready.status_code, ready.headers["Retry-After"]) == (503, "5")
            error = "the daemon accepts no work: it is starting or stopping"
            assert ready.json() == {"status": "stopping", "error": error, "retry_after": 5}
            live = await client.get("/api/health/live")
            assert (live.status_code, live.json()) == (200, {"status": "live"})
            assert (await client.get("/api/health")).status_code == 200
            assert "progressd_requests_rejected_total{" not in (await client.get("/api/metrics")).text
        go.touch()
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()
