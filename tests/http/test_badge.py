"""Badges, and the page for iframes."""

from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
from support import keys
from support.daemon import RunningDaemon, completed, failed, progress, registered, running_daemon
from support.http_client import client_of
from support.samples import ID, job_id

SITE = "https://wiki.example.org"
OTHER = job_id(2)


def text_of(response: httpx.Response) -> str:
    """Return the texts of a badge, and check that it is an SVG."""
    assert response.headers["Content-Type"] == "image/svg+xml; charset=utf-8"
    svg = ElementTree.fromstring(response.text)
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert svg.get("aria-label") == ": ".join(map(str, texts))
    return " ".join(map(str, texts))


async def test_badges_follow_the_job(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    async def badges() -> list[str]:
        return [text_of(await client.get(path)) for path in (f"/badge/job/{ID}.svg", "/badge/kind/a/<b>.svg")]

    missing = await client.get(f"/badge/job/{ID}.svg")
    assert (missing.status_code, text_of(missing)) == (404, "job no job")
    await daemon.report(registered(ID, kind="a/<b>", name="Night & day"))
    assert await badges() == ["Night & day queued", "a/<b> queued"]
    await daemon.report(progress(ID, 5, 12))
    assert await badges() == ["Night & day 41%", "a/<b> 41%"]
    await daemon.report(failed(ID, "No."))
    assert await badges() == ["Night & day failed", "a/<b> failed"]
    await daemon.report(registered(OTHER, kind="a/<b>"), progress(OTHER, 1), completed(OTHER))
    assert await badges() == ["Night & day failed", "a/<b> done"]
    shields = await client.get("/badge/kind/a/<b>.json?label=backup")
    assert shields.json() == {"schemaVersion": 1, "label": "backup", "message": "done", "color": "brightgreen"}
    assert (await client.get(f"/badge/job/{ID}.json")).json()["isError"] is True
    assert text_of(await client.get(f"/badge/job/{ID}.svg?label=a%00%1bb")) == "a  b failed"
    japanese = await client.get(f"/badge/job/{ID}.svg", headers={"Accept-Language": "ja"})
    assert text_of(japanese) == "Night & day 失敗"
    assert "accept-language" in japanese.headers["Vary"].lower()
    assert (await client.get(f"/badge/job/{ID}.png")).status_code == 404
    assert (await client.get("/badge/job/nonsense.svg")).status_code == 400


async def test_badges_are_cached_and_revalidated(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 5, 12))
    path = f"/badge/job/{ID}.svg"
    first = await client.get(path)
    assert first.headers["Cache-Control"] == "max-age=5"
    again = {"If-None-Match": first.headers["ETag"]}
    assert (await client.get(path, headers=again)).status_code == 304
    await daemon.report(completed(ID))
    changed = await client.get(path, headers=again)
    assert (changed.status_code, changed.headers["Cache-Control"]) == (200, "max-age=60")


@pytest.fixture
async def locked(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    key = keys.add(tmp_path / "state" / "keys.json", "site", "read", "write")
    async with (
        running_daemon(tmp_path, server={"allowed_origins": (SITE,)}, auth={"required": True}) as daemon,
        client_of(daemon) as client,
    ):
        await daemon.report(registered(ID, kind="backup"), registered(OTHER))
        client.headers.update(keys.bearer(key))
        yield client


async def test_badges_need_a_key_or_a_token(locked: httpx.AsyncClient) -> None:
    tokens = [(await locked.post(path)).json()["token"] for path in (f"/api/jobs/{ID}/token", "/api/token")]
    del locked.headers["Authorization"]
    assert (await locked.get(f"/badge/job/{ID}.svg")).status_code == 401
    statuses = [
        [(await locked.get(f"/badge/{name}.svg?token={token}")).status_code for token in tokens]
        for name in (f"job/{ID}", f"job/{OTHER}", "kind/backup")
    ]
    assert statuses == [[200, 200], [404, 200], [403, 200]]
    shown = await locked.get(f"/badge/job/{ID}.svg?token={tokens[0]}")
    assert shown.headers.get_list("Cross-Origin-Resource-Policy") == ["cross-origin"]


async def test_only_allowed_sites_may_frame_a_job(locked: httpx.AsyncClient) -> None:
    del locked.headers["Authorization"]
    response = await locked.get(f"/embed/{ID}")
    assert response.status_code == 200
    (policy,) = response.headers.get_list("Content-Security-Policy")
    assert f"frame-ancestors 'self' {SITE}" in policy
    assert "frame-ancestors 'none'" in (await locked.get("/")).headers["Content-Security-Policy"]
