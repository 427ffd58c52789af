"""Previews over REST, and what the page of a job shows from earlier runs and samples."""

from base64 import b64encode

import httpx
from progressd.core.eta import KeyedRun, Run, RunStep, key_of, step_hash
from progressd.http.stats_history import INTERVAL
from support.daemon import RunningDaemon, completed, progress, registered
from support.samples import ID, job_id

PICTURE = b"\x89PNG\r\n\x1a\n picture"
PREVIEWS = f"/api/jobs/{ID}/previews"


def preview(page: int, picture: bytes = PICTURE) -> dict[str, object]:
    data = {
        "page_number": page,
        "preview_base64": b64encode(picture).decode(),
        "stage": "Read",
        "width": 3,
        "height": 4,
    }
    return {"type": "page_preview", "job_id": ID, "data": data}


async def test_the_newest_preview_of_each_page_is_returned(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), preview(2), preview(1), preview(2, PICTURE * 2))
    listed = {"stage": "Read", "width": 3, "height": 4}
    assert (await client.get(PREVIEWS)).json()["previews"] == [
        {"page_number": 1, **listed, "bytes": len(PICTURE)},
        {"page_number": 2, **listed, "bytes": 2 * len(PICTURE)},
    ]
    response = await client.get(f"{PREVIEWS}/1")
    assert (response.content, response.headers["Content-Type"]) == (PICTURE, "image/png")
    known = {"If-None-Match": response.headers["ETag"]}
    assert (await client.get(f"{PREVIEWS}/1", headers=known)).status_code == 304
    await daemon.report(preview(1, PICTURE * 3))
    assert (await client.get(f"{PREVIEWS}/1", headers=known)).content == PICTURE * 3
    assert (await client.get(f"{PREVIEWS}/3")).status_code == 404
    assert (await client.get(f"{PREVIEWS}/x")).status_code == 400
    assert (await client.get(f"/api/jobs/{job_id(9)}/previews")).status_code == 404
    await daemon.report(progress(ID, 1), completed(ID))
    await client.delete(f"/api/jobs/{ID}?purge=true")
    assert daemon.daemon.ingest.previews.bytes == 0


async def test_a_job_has_the_usual_steps_of_earlier_runs(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 1, 4, "Read 1 of 4"))
    job = daemon.daemon.registry.unfinished[ID]
    steps = RunStep(step_hash("Read 9 of 9", None), 0.0, 5.0), RunStep(step_hash("Write", None), 5.0, 3.0)
    daemon.daemon.forecasts.add([KeyedRun(key_of(job), Run((), 8.0, 4, (), steps))])
    await daemon.report(progress(ID, 2, 4, "Read 2 of 4"))
    assert (await client.get(f"/api/jobs/{ID}")).json()["usual_steps"] == [
        {"step_name": "Read 1 of 4", "after_seconds": 0.0, "seconds": 5.0, "runs": 1},
        {"after_seconds": 5.0, "seconds": 3.0, "runs": 1},
    ]
    assert "usual_steps" not in (await client.get("/api/jobs")).json()["jobs"][0]
    await daemon.report(completed(ID))
    usual = (await client.get(f"/api/jobs/{ID}")).json()["usual_steps"]
    assert [step["seconds"] for step in usual] == [5.0, 3.0]  # its own run is no earlier run


async def test_the_history_of_statistics_has_the_current_numbers(
    daemon: RunningDaemon, client: httpx.AsyncClient
) -> None:
    await daemon.report(registered(ID), progress(ID, 1), completed(ID), registered(job_id(2)))
    body = (await client.get("/api/stats/history")).json()
    assert body["interval_seconds"] == INTERVAL
    now = body["samples"][-1]
    assert (now["completed"], now["unfinished"], now["slow_watchers"]) == (1, 1, 0)
    assert now["events"] == 4
