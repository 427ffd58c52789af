"""`/api/uploads`: resumable uploads with tus 1.0."""

import base64
import json
from collections.abc import Mapping

import httpx
from progressd.core.pipeline import Option, Pipeline
from support.daemon import RunningDaemon
from support.submitting import PDF

TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {**TUS, "Content-Type": "application/offset+octet-stream"}
FILE = PDF + bytes(range(256)) * 400
IDLE = {"idle": Pipeline(("sleep", "60"), accept=("*/*",))}
COPY = {
    "copy": Pipeline(
        ("cp", "{input}", "{output}"), accept=("*/*",), output="x.txt", options={"n": Option("integer", 1)}
    )
}
AT_ONCE = {"wait_for_jobs": False}


def encoded(**values: str) -> str:
    """Return the header Upload-Metadata."""
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items())


async def created(
    client: httpx.AsyncClient, length: int = len(FILE), content: bytes | None = None, **metadata: str
) -> httpx.Response:
    headers = {
        **(TUS if content is None else OCTETS),
        "Upload-Length": str(length),
        "Upload-Metadata": encoded(**{"filename": "book.pdf", **metadata}),
    }
    return await client.post("/api/uploads", headers=headers, content=content or b"")


async def patched(
    client: httpx.AsyncClient, url: str, offset: int, content: bytes, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    headers = {**OCTETS, "Upload-Offset": str(offset), **(headers or {})}
    return await client.patch(url, headers=headers, content=content)


def partial(daemon: RunningDaemon) -> list[str]:
    """Return the files of uploads."""
    return sorted(path.suffix for path in (daemon.settings.state_dir / "partial").iterdir())


async def test_an_upload_in_two_pieces_becomes_one_job(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    options, labels = json.dumps({"dpi": 150, "priority": "high"}), json.dumps({"team": "scan"})
    response = await created(client, options=options, labels=labels)
    assert (response.status_code, response.headers["Upload-Offset"]) == (201, "0")
    url = response.headers["Location"]
    half = len(FILE) // 2
    response = await patched(client, url, 0, FILE[:half])
    assert (response.status_code, response.headers["Upload-Offset"]) == (204, str(half))
    assert "Progressd-Job-Id" not in response.headers
    assert daemon.daemon.files.usage.receiving == half
    assert (await patched(client, url, 0, FILE)).status_code == 409
    state = await client.head(url, headers=TUS)
    assert (state.status_code, state.headers["Upload-Offset"]) == (200, str(half))
    assert state.headers["Upload-Length"] == str(len(FILE))
    assert state.headers["Cache-Control"] == "no-store"
    response = await patched(client, url, half, FILE[half:])
    job = await daemon.daemon.registry.get(response.headers["Progressd-Job-Id"])
    assert (job.input_filename, job.priority, job.labels) == ("book.pdf", "high", {"team": "scan"})
    assert job.options["dpi"] == 150
    assert daemon.daemon.files.input(job.id).read_bytes() == FILE
    assert daemon.daemon.files.usage.receiving == 0
    assert partial(daemon) == [".json"]
    assert (await patched(client, url, half, FILE[half:])).status_code == 409  # the client repeats its last request
    for response in (await patched(client, url, len(FILE), b""), await client.head(url, headers=TUS)):
        assert (response.headers["Progressd-Job-Id"], response.headers["Upload-Offset"]) == (job.id, str(len(FILE)))
    assert (await client.get(url)).json()["job_id"] == job.id
    assert (await client.get("/api/jobs")).json()["total"] == 1
