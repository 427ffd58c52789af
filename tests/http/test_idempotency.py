"""`Idempotency-Key`: a repeated request creates one job."""

from pathlib import Path

import httpx
import pytest
from progressd.core.pipeline import Pipeline
from progressd.store.base import Filter
from support.daemon import RunningDaemon, running_daemon
from support.http_client import FORM_TYPE, client_of, error_of, file_part, form, options_part, post_form
from support.submitting import PDF
from support.waiting import eventually

KEY = {"Idempotency-Key": '"8e03978e-40d5-43e8-bc93-6894a57f9324"'}
IDLE = Pipeline(("sleep", "60"), accept=("*/*",))


async def convert(client: httpx.AsyncClient, headers: dict[str, str], pipeline: str = "idle") -> httpx.Response:
    return await client.post(
        f"/api/convert?pipeline={pipeline}", content=form(file_part()), headers={**FORM_TYPE, **headers}
    )


async def jobs(daemon: RunningDaemon) -> int:
    return (await daemon.daemon.store.list_jobs(Filter(), 10, 0))[1]


async def test_a_reused_key_returns_the_same_job(tmp_path: Path) -> None:
    pipelines = {"idle": IDLE}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon, client_of(daemon) as client:
        first = await convert(client, KEY)
        second = await convert(client, KEY)
        assert "Idempotency-Replayed" not in first.headers
        assert second.headers["Idempotency-Replayed"] == "true"
        assert daemon.daemon.files.input(first.json()["job_id"]).read_bytes() == PDF
        await client.delete(f"/api/jobs/{first.json()['job_id']}")
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon, client_of(daemon) as client:
        third = await convert(client, KEY)
        assert await jobs(daemon) == 1
    assert [answer.status_code for answer in (first, second, third)] == [202] * 3
    assert first.json() == second.json() == third.json()
    assert first.json()["status"] == "queued"


async def test_other_keys_create_other_jobs(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    answers = [
        await client.post("/api/convert", files={"file": ("a.pdf", PDF)}, headers=headers)
        for headers in ({}, {}, {"Idempotency-Key": "a"}, {"Idempotency-Key": "b"})
    ]
    assert len({answer.json()["job_id"] for answer in answers}) == await jobs(daemon) == 4


async def test_a_key_in_use_returns_409(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    whole = form(file_part())
    head = "".join(f"{name}: {value}\r\n" for name, value in {**FORM_TYPE, **KEY}.items())
    async with await daemon.connect() as slow:
        await slow.send_all(
            f"POST /api/convert HTTP/1.1\r\nHost: a\r\n{head}Content-Length: {len(whole)}\r\n\r\n".encode() + whole[:-9]
        )
        uploads = daemon.settings.state_dir / "uploads"
        await eventually(lambda: list(uploads.iterdir()))
        rejected = await client.post("/api/convert", content=whole, headers={**FORM_TYPE, **KEY})
        assert (rejected.status_code, error_of(rejected)) == (
            409,
            "another request with this Idempotency-Key is being served: wait for its response",
        )
        await slow.send_all(whole[-9:])
        assert b" 202 " in await slow.receive_some()
    assert await jobs(daemon) == 1


async def test_a_rejected_request_does_not_use_its_key(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    rejected = await client.post("/api/convert", content=b"no form", headers={**FORM_TYPE, **KEY})
    assert rejected.status_code == 400
    taken = await client.post("/api/convert", files={"file": ("a.pdf", PDF)}, headers=KEY)
    assert (taken.status_code, "Idempotency-Replayed" in taken.headers) == (202, False)


DIGEST = {"Content-Digest": "sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:"}


@pytest.mark.parametrize(("path", "name"), [("/api/convert", "file"), ("/api/batch", "files")])
async def test_a_key_with_another_body_returns_422(
    daemon: RunningDaemon, client: httpx.AsyncClient, path: str, name: str
) -> None:
    headers, body = {**FORM_TYPE, **KEY, **DIGEST}, form(file_part(name=name))
    first = await client.post(path, content=body, headers=headers)
    assert first.status_code == 202
    others = [
        (form(file_part(PDF + b" ", name=name)), headers),
        (form(file_part(name=name), options_part({"dpi": 201})), headers),
        (body, {**headers, "Content-Digest": "sha-256=:AAAA:"}),
        (body, {**FORM_TYPE, **KEY}),
    ]
    for other, other_headers in others:
        rejected = await client.post(path, content=other, headers=other_headers)
        assert rejected.status_code == 422
        assert error_of(rejected).startswith("this Idempotency-Key was used before, with another body")
    same = await client.post(path, content=body, headers=headers)
    assert (same.status_code, same.json()) == (202, first.json())
    assert same.headers["Idempotency-Replayed"] == "true"
    assert await jobs(daemon) == 1
    assert list((daemon.settings.state_dir / "uploads").iterdir()) == []


async def test_a_key_with_another_pipeline_returns_422(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"idle": IDLE, "other": IDLE}) as daemon, client_of(daemon) as client:
        await client.delete(f"/api/jobs/{(await convert(client, KEY)).json()['job_id']}")
        rejected = await convert(client, KEY, "other")
        assert rejected.status_code == 422
        assert "was used before, for the pipeline idle: use a new one" in error_of(rejected)


async def test_a_malformed_key_is_rejected(client: httpx.AsyncClient) -> None:
    rejected = await post_form(client, file_part())
    assert rejected.status_code == 202
    for key in ["", "two words", "x" * 256, "Bücher"]:
        headers = {
            b"Idempotency-Key": key.encode(),
            **{name.encode(): value.encode() for name, value in FORM_TYPE.items()},
        }
        rejected = await client.post("/api/convert", content=form(file_part()), headers=headers)
        assert (rejected.status_code, "Idempotency-Key" in error_of(rejected)) == (400, True)
