"""Which pages of other sites may read responses."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.daemon import running_daemon
from support.http_client import client_of
from support.samples import ID

SITE = "https://dash.example.org"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running_daemon(tmp_path, server={"allowed_origins": (SITE,)}, auth={"required": True}) as daemon,
        client_of(daemon) as client,
    ):
        yield client


async def test_a_preflight_of_an_allowed_site_needs_no_key(client: httpx.AsyncClient) -> None:
    headers = {"Origin": SITE, "Access-Control-Request-Method": "DELETE"}
    response = await client.options(f"/api/jobs/{ID}", headers=headers)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == SITE
    assert response.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    allowed = response.headers["Access-Control-Allow-Headers"].split(", ")
    assert {"Content-Type", "Authorization", "X-API-Key"} <= set(allowed)
    assert response.headers["Access-Control-Max-Age"] == "86400"
    assert response.headers["Vary"] == "Origin"


async def test_an_allowed_site_may_read_responses(client: httpx.AsyncClient) -> None:
    for path, status in [("/api/health", 200), ("/api/jobs", 401), ("/api/nothing", 401)]:
        response = await client.get(path, headers={"Origin": SITE})
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (status, SITE)
        shown = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"ETag", "Idempotency-Replayed", "X-RateLimit-Reset"} <= set(shown)
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_other_sites_may_not_read_responses(client: httpx.AsyncClient) -> None:
    for headers in [{}, {"Origin": "https://evil.example"}, {"Origin": "null"}]:
        for response in (
            await client.get("/api/health", headers=headers),
            await client.options("/api/health", headers={**headers, "Access-Control-Request-Method": "GET"}),
        ):
            assert "Access-Control-Allow-Origin" not in response.headers
            assert response.status_code == 200
            assert "Origin" in response.headers.get_list("Vary")
        assert "GET" in response.headers["Allow"]


@pytest.mark.parametrize("headers", [{}, {"Origin": SITE}])
async def test_fast_reads_vary_by_origin(tmp_path: Path, headers: dict[str, str]) -> None:
    async with (
        running_daemon(tmp_path, server={"allowed_origins": (SITE,)}) as daemon,
        client_of(daemon) as client,
    ):
        await client.post("/api/jobs", json={"id": ID, "kind": "backup"})
        for tag in ("", (await client.get(f"/api/jobs/{ID}")).headers["ETag"]):
            read = await client.get(f"/api/jobs/{ID}", headers={**headers, "If-None-Match": tag})
            assert read.status_code == (304 if tag else 200)
            assert read.headers.get_list("Vary", split_commas=True) == ["Accept-Encoding", "Origin"]


async def test_every_site_may_import_the_modules(client: httpx.AsyncClient) -> None:
    for headers in [{}, {"Origin": SITE}, {"Origin": "https://other.example"}]:
        response = await client.get("/static/progressd.js", headers=headers)
        assert response.headers.get_list("Access-Control-Allow-Origin") == ["*"]
        assert response.headers.get_list("Cross-Origin-Resource-Policy") == ["cross-origin"]
    response = await client.get("/api/health")
    assert response.headers.get_list("Cross-Origin-Resource-Policy") == ["same-origin"]
