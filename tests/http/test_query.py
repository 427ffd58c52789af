"""Every endpoint rejects unknown query parameters."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import client_of, error_of
from support.peer import Peer, upgrade
from support.samples import ID

REFUSED = re.compile(r"the query is wrong: unknown parameter 'limt' \((known here: [a-z, ]+|none is known here)\)")
# requests of existing clients: the page, scripts and dashboards
KNOWN = [
    "/api/jobs/history?limit=50&offset=0&status=",
    "/api/jobs/history?limit=50&offset=0&status=failed&_=1700000000000",
    "/api/jobs?limit=20",
    "/api/jobs?limit=20&offset=0&status=completed&kind=job&label=team=scan",
    f"/api/jobs/{ID}?_=1700000000000",
    f"/api/jobs/{ID}?since=&wait=0",
    "/api/health?_=1",
    "/api/stats?_=1",
    "/api/metrics?_=1",
    f"/api/jobs/{ID}/events?since=x-1&interval=1&types=progress&_=1",
    "/?job=1&utm_source=mail",
    "/static/main.js?v=1",
]


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[tuple[RunningDaemon, httpx.AsyncClient]]:
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID), progress(ID, 1), completed(ID))
        yield daemon, client


async def test_every_endpoint_rejects_unknown_parameters(
    asked: tuple[RunningDaemon, httpx.AsyncClient],
) -> None:
    _, client = asked
    paths = (await client.get("/api/openapi.json")).json()["paths"]
    assert len(paths) > 20
    for path, methods in paths.items():
        for method, operation in methods.items():
            target = re.sub("{.*?}", ID, path.replace("{form}", "svg").replace("{page_number}", "1"))
            response = await client.request(method, target, params={"limt": "1"})
            error = error_of(response)
            assert (response.status_code, bool(REFUSED.fullmatch(error))) == (400, True), (method, path, error)
            for parameter in operation["parameters"]:
                assert parameter["in"] != "query" or parameter["name"] in error


async def test_known_parameters_are_accepted(asked: tuple[RunningDaemon, httpx.AsyncClient]) -> None:
    for target in KNOWN:
        daemon, _ = asked
        async with Peer(await daemon.connect()) as peer:
            assert (await peer.ask(target, {"Connection": "close"})).status == 200


async def test_every_websocket_rejects_unknown_parameters(asked: tuple[RunningDaemon, httpx.AsyncClient]) -> None:
    for path in ["/ws", "/ws/jobs", f"/ws/jobs/{ID}", "/ws/publish"]:
        daemon, _ = asked
        async with Peer(await daemon.connect()) as peer:
            await peer.send(upgrade(f"{path}?limt=1"))
            response = await peer.response()
            assert (response.status, list(response.json)) == (400, ["error"])
            assert REFUSED.fullmatch(response.json["error"])
        query = "?_=1" if path == "/ws/publish" else "?types=error&interval=1&_=1"
        async with Peer(await daemon.connect()) as peer:
            await peer.open(path + query)
