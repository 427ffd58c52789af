"""Every endpoint rejects unknown query parameters."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from progressd.core.errors import InvalidInput
from progressd.http.routes.ping import PingQuery
from progressd.net.request import parsed_query
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


async def test_an_error_names_the_parameter_and_its_values(asked: tuple[RunningDaemon, httpx.AsyncClient]) -> None:
    _, client = asked
    for target, reason in {
        "/api/jobs?sort=foo": "sort is 'foo', not one of -created, created, -updated, -finished, name",
        "/api/jobs?counts=yes": "counts is 'yes', not true or false",
        "/api/jobs?limit=0": "limit is '0', not a whole number of at least 1",
        "/api/jobs?limit=many": "limit is 'many', not a whole number of at least 1",
        "/api/jobs?offset=1.5": "offset is '1.5', not a whole number from 0 to 9007199254740992",
        f"/api/jobs?q={'a' * 201}": "q has more than 200 characters",
        f"/api/jobs/{ID}?wait=long": "wait is 'long', not a number of at least 0",
        f"/api/jobs/{ID}/events?interval=61": "interval is '61', not a number from 0 to 60",
        f"/api/jobs/{ID}/log?tail=-1": "tail is '-1', not a whole number from 0 to 2147483648",
        f"/api/jobs/{ID}/log?tail=1&offset=1": "give only one of offset, tail and since",
    }.items():
        response = await client.get(target)
        assert (response.status_code, error_of(response)) == (400, f"the query is wrong: {reason}")
    for query, reason in {
        "lifetime=0": "lifetime is '0', not a number above 0 and at most 2147483648",
        "log=on": "log is 'on', not true or false",
    }.items():
        response = await client.post(f"/api/jobs/{ID}/token?{query}")
        assert (response.status_code, error_of(response)) == (400, f"the query is wrong: {reason}")


@pytest.mark.parametrize(
    ("query", "reason"), [({"rid": "x"}, "rid is 'x', not a UUID"), ({"create": "2"}, "create is '2', not one of 0, 1")]
)
def test_an_error_of_a_ping_names_the_values(query: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"^the query is wrong: {reason}$"):
        parsed_query(query, PingQuery)


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
            assert (response.status, list(response.json)) == (400, ["error", "code"])
            assert REFUSED.fullmatch(response.json["error"])
        query = "?_=1" if path == "/ws/publish" else "?types=error&interval=1&_=1"
        async with Peer(await daemon.connect()) as peer:
            await peer.open(path + query)
