"""Which responses are compressed, and for which clients."""

import gzip

import httpx
from support.daemon import RunningDaemon, progress, registered
from support.http_client import exchange, get
from support.samples import ID, job_id


async def test_a_long_list_is_compressed(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(*(registered(job_id(number), input_filename=f"{number}.pdf") for number in range(1, 301)))
    plain = await client.get("/api/jobs?limit=300", headers={"Accept-Encoding": "identity"})
    small = await client.get("/api/jobs?limit=300", headers={"Accept-Encoding": "br, gzip;q=0.5"})
    assert plain.json() == small.json()
    assert "Content-Encoding" not in plain.headers
    assert small.headers["Content-Encoding"] == "gzip"
    assert int(small.headers["Content-Length"]) * 5 < int(plain.headers["Content-Length"])
    assert plain.headers["Vary"] == small.headers["Vary"] == "Accept-Encoding"


async def test_clients_without_gzip_get_plain_text(client: httpx.AsyncClient) -> None:
    for accepted in ["", "identity", "br", "gzip;q=0"]:
        response = await client.get("/api/openapi.json", headers={"Accept-Encoding": accepted})
        assert "Content-Encoding" not in response.headers
        assert response.json()["openapi"] == "3.1.0"


async def test_long_texts_are_compressed(daemon: RunningDaemon) -> None:
    for path in ["/api/openapi.json", "/api/docs", "/api/metrics"]:
        answer = await exchange(daemon, get(path, "Accept-Encoding: gzip", "Connection: close"))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in head.lower()
        assert len(gzip.decompress(body)) > 2 * len(body)


async def test_short_texts_are_not_compressed(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for path in ["/api/health", f"/api/jobs/{ID}", "/api/nothing"]:
        await daemon.report(registered(ID))
        response = await client.get(path, headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in response.headers


async def test_a_compressed_job_has_a_weak_etag(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID, options={"text": "x" * 5000}))
    path = f"/api/jobs/{ID.upper()}"  # not a fast read
    first = await client.get(path, headers={"Accept-Encoding": "gzip"})
    assert first.headers["Content-Encoding"] == "gzip"
    assert first.headers["ETag"].startswith("W/")
    for again in (path, f"/api/jobs/{ID}"):
        assert (await client.get(again, headers={"If-None-Match": first.headers["ETag"]})).status_code == 304


async def test_fast_reads_are_compressed(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID, options={"text": "x" * 30_000}))
    paths = (f"/api/jobs/{ID}", f"/api/jobs/{ID.upper()}")
    for accepted, encoding in (("gzip, deflate", "gzip"), ("*", "gzip"), ("gzip;q=0", None), ("", None)):
        direct, applied = [await client.get(path, headers={"Accept-Encoding": accepted}) for path in paths]
        assert {**direct.headers, "date": ""} == {**applied.headers, "date": ""}
        assert direct.headers.get("Content-Encoding") == encoding
        assert direct.headers["ETag"].startswith("W/") is (encoding is not None)
        assert (int(direct.headers["Content-Length"]) < 2000) is (encoding is not None)
        assert direct.json() == applied.json()
    await daemon.report(progress(ID, 1))
    changed = await client.get(paths[0], headers={"Accept-Encoding": "gzip", "If-None-Match": direct.headers["ETag"]})
    assert (changed.status_code, changed.json()["status"]) == (200, "processing")


async def test_an_overlong_accept_encoding_is_ignored(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID, options={"text": "x" * 5000}))
    for id_ in [ID, ID.upper()]:
        for accepted, encoding in ((f"gzip{',a' * 98}", "gzip"), (f"gzip{',a' * 99}", None)):
            answer = await client.get(f"/api/jobs/{id_}", headers={"Accept-Encoding": accepted})
            assert (answer.status_code, answer.headers.get("Content-Encoding")) == (200, encoding)
