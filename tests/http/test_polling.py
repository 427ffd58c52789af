"""Fast reads of jobs: the same responses and checks as in the application, in one write."""

import json
import socket
from pathlib import Path

import httpx
import pytest
import trio
from msgspec.structs import replace
from progressd.http.app import build_app
from progressd.http.job_cache import MAX_ENTRIES, JobResponseCache
from progressd.http.middleware import AccessMiddleware
from progressd.http.server.hypercorn import KEEP_ALIVE_TIMEOUT
from progressd.net.request import AT_ROOT
from support.daemon import PATIENCE, RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import client_of, exchange, get
from support.keys import add
from support.samples import ID, job, job_id
from trio.testing import MockClock, wait_all_tasks_blocked

PATH = f"/api/jobs/{ID}"
ELSEWHERE = f"/api/jobs/{ID.upper()}"  # not a fast read


async def test_a_fast_read_equals_the_applications_response(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID, input_filename="Bücher.pdf"), progress(ID, 1))
    for headers in ({}, {"If-None-Match": (await client.get(PATH)).headers["ETag"]}):
        direct, applied = [await client.get(path, headers=headers) for path in (PATH, ELSEWHERE)]
        assert direct.status_code == applied.status_code == (304 if headers else 200)
        assert direct.content == applied.content
        assert {**direct.headers, "date": ""} == {**applied.headers, "date": ""}


@pytest.mark.parametrize("path", [PATH, ELSEWHERE])
async def test_an_unchanged_job_returns_304(daemon: RunningDaemon, client: httpx.AsyncClient, path: str) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    etag = (await client.get(path)).headers["ETag"]
    for known in (etag, f"W/{etag}", f'"x", {etag}', f'W/"x",W/{etag}', "*"):
        unchanged = await client.get(path, headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["ETag"] == etag
        assert unchanged.headers["Cache-Control"] == "private, no-cache"
    for other in ('"x"', etag[:-2] + '"', etag.strip('"')):
        assert (await client.get(path, headers={"If-None-Match": other})).status_code == 200
    for event in (progress(ID, 2), completed(ID)):
        await daemon.report(event)
        changed = await client.get(path, headers={"If-None-Match": etag})
        assert (changed.status_code, changed.headers["ETag"] != etag) == (200, True)
        etag = changed.headers["ETag"]


async def test_a_stored_job_is_returned(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID), progress(ID, 1), completed(ID))
        before = await client.get(PATH)
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        assert daemon.daemon.registry.known(ID) is None
        after = await client.get(PATH)
        assert (after.json(), after.headers["ETag"]) == (before.json(), before.headers["ETag"])
        unchanged = await client.get(PATH, headers={"If-None-Match": before.headers["ETag"]})
        assert unchanged.status_code == 304


async def test_fast_reads_check_access(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID))
        assert (await client.get(PATH)).status_code == 401
        bound = add(daemon.settings.auth.keys_file, "scan", "read", team="scan")
        daemon.daemon.authenticator.load()
        assert (await client.get(PATH, headers={"X-API-Key": bound})).status_code == 404
    async with running_daemon(tmp_path / "open") as daemon:
        await daemon.report(registered(ID))
        answer = await exchange(
            daemon, f"GET {PATH} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 403 ")


async def test_fast_reads_have_rate_limit_headers(tmp_path: Path) -> None:
    limits = {"exempt_addresses": (), "rate_limit_burst": 4, "rate_limit_per_minute": 1}
    async with running_daemon(tmp_path, limits=limits) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID))
        answers = [await client.get(path) for path in (PATH, ELSEWHERE, PATH)]
        told = [{name: answer.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining")} for answer in answers]
        assert told == [{"Limit": "1", "Remaining": str(left)} for left in (3, 2, 1)]
        assert [name for name, _ in answers[0].headers.items()] == [name for name, _ in answers[1].headers.items()]
        access = AccessMiddleware(build_app(), daemon.daemon.services)
        asked = (b"GET", PATH.encode(), ((b"host", b"localhost"),), ("127.0.0.1", 1))
        direct = access.fast_read(*asked)
        assert direct is not None
        assert dict(direct.headers)[b"x-ratelimit-remaining"] == b"0"
        assert access.fast_read(*asked) is None  # the application rejects it
        assert (await client.get(PATH)).status_code == 429


@pytest.mark.parametrize("path", [PATH, ELSEWHERE])
async def test_an_http_1_0_request_counts_once(tmp_path: Path, path: str) -> None:
    limits = {"exempt_addresses": (), "rate_limit_burst": 3, "rate_limit_per_minute": 1}
    async with running_daemon(tmp_path, limits=limits) as daemon:
        await daemon.report(registered(ID))
        answers = [await exchange(daemon, f"GET {path} HTTP/1.0\r\n\r\n".encode()) for _ in range(4)]
    assert [answer.split()[1] for answer in answers] == [b"200", b"200", b"200", b"429"]


async def test_pipelined_reads_are_answered_in_order(daemon: RunningDaemon) -> None:
    await daemon.report(*(registered(job_id(number)) for number in range(1, 4)))
    paths = [f"/api/jobs/{job_id(1)}", "/api/health/live", *(f"/api/jobs/{job_id(number)}" for number in (2, 3))]
    requests = [get(path) for path in (*paths, "/api/health/ready")]
    answer = await exchange(daemon, b"".join(requests) + get(PATH, "Connection: close"))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 ")[1:]]
    expected = [job_id(1), "live", job_id(2), job_id(3), "ready", ID]
    assert [what.encode() in body for what, body in zip(expected, bodies, strict=True)] == [True] * 6


async def test_unusual_requests_close_the_connection(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    for request_ in [
        get(PATH, "Connection: close"),
        f"GET {PATH} HTTP/1.0\r\n\r\n".encode(),
        f"GET {PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc".encode(),
        f"GET {PATH}? HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
        f"GET http://localhost{PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
    ]:
        answer = await exchange(daemon, request_.replace(b"Host: a\r\n", b"Host: localhost\r\n"))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(ID.encode()) == 2


async def test_a_response_is_one_write(
    daemon: RunningDaemon, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await daemon.report(registered(ID))
    writes: list[bytes] = []
    send = socket.socket.send

    def counted(self: socket.socket, data: bytes) -> int:
        if bytes(data).startswith(b"HTTP/1.1 "):
            writes.append(bytes(data))
        return send(self, data)

    monkeypatch.setattr(socket.socket, "send", counted)
    for path in (PATH, "/api/health", f"/api/jobs/{job_id(9)}"):
        writes.clear()
        answer = await client.get(path)
        assert answer.content
        assert [data.endswith(answer.content) for data in writes] == [True]


async def test_a_polling_client_is_not_idle(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with await daemon.connect() as stream:
        for _ in range(8):
            await stream.send_all(get(PATH))
            assert ID.encode() in await stream.receive_some()
            await wait_all_tasks_blocked()
            slow_clock.jump(KEEP_ALIVE_TIMEOUT / 2)
        slow_clock.jump(KEEP_ALIVE_TIMEOUT)
        with trio.fail_after(PATIENCE):
            assert await stream.receive_some() == b""


async def test_a_stopping_daemon_closes_after_the_response(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon:
        await daemon.report(registered(ID))
        async with await daemon.connect() as stream:
            await stream.send_all(get(PATH))
            await stream.receive_some()
            await wait_all_tasks_blocked()
            daemon.kill()
            with trio.fail_after(PATIENCE):
                assert await stream.receive_some() == b""


@pytest.mark.parametrize(("size", "kept"), [(5000, 0), (100, MAX_ENTRIES)])
def test_the_cache_has_a_size_limit(size: int, kept: int) -> None:
    answers = JobResponseCache("store", AT_ROOT)
    jobs = [job(number, offset=number, options={"a": "x" * size}) for number in range(1, MAX_ENTRIES + 100)]
    first = [answers.answer(one, None) for one in jobs]
    again = [answers.answer(replace(one), None) for one in reversed(jobs)]  # equal jobs, as read from the store
    assert sum(one is other for one, other in zip(first, reversed(again), strict=True)) == kept


def test_a_cached_response_follows_the_job() -> None:
    answers = JobResponseCache("store", AT_ROOT)
    for offset in (1, 2, 2, 3):
        assert json.loads(answers.answer(job(offset=offset), None).body)["cursor"] == f"store-{offset}"
