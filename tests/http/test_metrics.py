"""`GET /api/metrics`, read with Prometheus' own parser."""

from pathlib import Path

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from support.daemon import RunningDaemon, completed, failed, progress, registered, running_daemon
from support.http_client import client_of
from support.keys import add, bearer
from support.samples import ID, job_id
from support.waiting import eventually


async def scraped(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the samples by name and label values: `superbook_jobs_total{completed}`."""
    response = await client.get("/api/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return {
        sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_metrics_count_the_work(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    other = job_id(2)
    async with daemon.watch("/ws/jobs") as watcher:
        await daemon.report(registered(ID), progress(ID, 1), completed(ID, page_count=12, elapsed_seconds=45))
        await daemon.report(registered(other), progress(other, 1), failed(other, "no paper"), progress(other, 2))
        await watcher.receive_until("error")
        found = await scraped(client)
    assert {name: found[name] for name in found if name.startswith("superbook_jobs_total")} == {
        "superbook_jobs_total{queued}": 2,
        "superbook_jobs_total{processing}": 2,
        "superbook_jobs_total{completed}": 1,
        "superbook_jobs_total{failed}": 1,
        "superbook_jobs_total{cancelled}": 0,
    }
    assert (found["superbook_processing_seconds_count"], found["superbook_processing_seconds_sum"]) == (1, 45)
    assert (found["superbook_processing_seconds_bucket{30.0}"], found["superbook_processing_seconds_bucket{60.0}"]) == (
        0,
        1,
    )
    assert found["superbook_pages_processed_total"] == 12
    assert found["superbook_websocket_connections"] == 1
    assert found["superbook_workers"] == 2
    assert found["superbook_uptime_seconds"] > 0
    assert (found["progressd_events_total{accepted}"], found["progressd_events_total{rejected}"]) == (6, 1)
    assert found["progressd_deliveries_total"] == 10
    assert found["progressd_delivered_bytes_total"] > 1000
    assert found["progressd_store_commit_duration_seconds_count"] >= 2
    for name in (
        *("progressd_messages_coalesced_total", "progressd_send_buffer_bytes"),
        *("progressd_ingest_queue_length", "progressd_event_loop_lag_seconds", "superbook_batches_total{completed}"),
        "progressd_store_delete_duration_seconds_count",
        *("progressd_active_topics", "progressd_connections", "process_resident_memory_bytes"),
    ):
        assert name in found, name


async def test_deliveries_count_filtered_messages_but_no_replays(
    daemon: RunningDaemon, client: httpx.AsyncClient
) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch("/ws/jobs?types=completed") as watcher:
        await daemon.report(progress(ID, 2), completed(ID))
        told = [message["type"] for message in await watcher.receive_until("completed")]
        assert told == ["status_change", "status_change", "completed"]  # the first is replayed
        assert (await scraped(client))["progressd_deliveries_total"] == 3  # with the progress, without the replay


async def test_rejected_handshakes_are_counted_by_reason(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    async with await daemon.connect() as stream:
        head = f"GET /ws/jobs/{ID} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        await stream.send_all((head + key).encode())
        while await stream.receive_some():
            pass
    await eventually(lambda: daemon.daemon.connection_log.open == 0)
    found = await scraped(client)
    assert found["progressd_handshakes_rejected_total{not found}"] == 1
    assert found["progressd_connections_closed_total{rejected,not found}"] == 1


async def test_openmetrics_is_returned_on_request(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert "Accept" in response.headers.get("Vary", "").split(", ")
    assert {family.name for family in open_metrics(response.text)} >= {"superbook_jobs", "progressd_deliveries"}


async def test_bound_keys_get_no_metrics(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        headers = bearer(add(daemon.settings.auth.keys_file, "scan", team="scan"))
        daemon.daemon.authenticator.load()
        await daemon.report(
            registered(ID, labels={"team": "scan"}), registered(job_id(2)), progress(ID, 1), completed(ID, page_count=3)
        )
        assert (await client.get("/api/metrics", headers=headers)).status_code == 403
        jobs = (await client.get("/api/stats/jobs", headers=headers)).json()
        batches = (await client.get("/api/stats", headers=headers)).json()["batches"]
    assert (jobs["total_jobs"], jobs["total_pages_processed"]) == (1, 3)
    assert batches == {"total": 0, "completed": 0, "processing": 0}


async def test_an_invalid_accept_returns_the_default_format(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/metrics", headers={"Accept": "application/openmetrics-text;version=1.x.0"})
    assert response.status_code == 200
