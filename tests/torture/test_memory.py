"""Clients that connect, break off or finish, many times a second, do not make the daemon's memory grow.

    make torture ARGS="-s tests/torture/test_memory.py --rounds 600"

has 720,000 operations in two hours, and prints a table.
"""

import itertools
import json
import random
import statistics
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.daemon import completed, progress, registered
from support.http_client import FORM_TYPE, file_part, form
from support.peer import Peer, Response, close_frame, frame, request, upgrade
from support.serving import ServedDaemon, served_daemon
from support.submitting import PDF
from wsproto.frame_protocol import Opcode

CONFIG = """
[server]
allowed_hosts = ["daemon"]
[limits]
max_connections = 1000
[store]
retention = 60
[pipelines.nothing]
command = ["true", "{input}"]
"""
ROUND = 12.0  # seconds of churn for each of --rounds
RATE = 100.0  # operations a second, as far as the machine keeps up
INTERVAL = 2.0  # seconds from one sample to the next
GROWTH = 8.0  # MiB by which the last third may be above the second third
MAX_HOLD = 1.0  # seconds for which a client stays connected
MAX_OPERATIONS = 50  # at a time
PATIENCE = 60.0  # seconds for each wait, because the machine may not keep up
SIZES = (1_000, 100_000, 2_000_000)  # bytes of a file
WEIGHTS = {
    "read": 4,
    "watch_by_websocket": 4,
    "watch_many_topics": 2,
    "watch_by_events": 4,
    "long_poll": 4,
    "stay_half_open": 1,
    "break_off_head": 4,
    "cut_upload": 3,
    "cut_batch": 1,
    "upload": 0.6,
    "batch": 0.2,
    "job_over_http": 3,
    "job_over_unix": 3,
    "job_over_websocket": 2,
    "bad_requests": 3,
}


def expect(response: Response, status: int) -> None:
    assert response.status == status, response


class Churn:
    """The clients of one daemon. `job` is a job that never finishes."""

    def __init__(self, daemon: ServedDaemon, chance: random.Random) -> None:
        self.counted = Counter[str]()
        self.errors: list[str] = []
        self.job = str(uuid.uuid4())
        self._daemon = daemon
        self._socket = daemon.state_dir / "ingest.sock"
        self._chance = chance

    async def run(self, seconds: float) -> None:
        """Start RATE operations a second, while a producer reports on `job`. Errors go to `errors`."""
        limiter = trio.CapacityLimiter(MAX_OPERATIONS)
        async with self.reported_job(), trio.open_nursery() as nursery:
            due = trio.current_time()
            until = due + seconds
            while due < until:
                await trio.sleep_until(due)
                await limiter.acquire_on_behalf_of(operation := object())
                name = self._chance.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
                nursery.start_soon(self._one, name, limiter, operation)
                due = max(due + 1 / RATE, trio.current_time() - 1)  # catch up by a second at most

    async def _one(self, name: str, limiter: trio.CapacityLimiter, operation: object) -> None:
        try:
            await self.do(name)
        except Exception as error:
            self.errors.append(f"{name}: {error!r}")
        finally:
            limiter.release_on_behalf_of(operation)

    async def do(self, name: str) -> None:
        """Do one of WEIGHTS on a new connection. Half of the connections that are still open are reset."""
        async with self._connect() as peer:
            await getattr(self, name)(peer)
            if peer.stream.socket.fileno() >= 0 and self._chance.random() < 0.5:
                await peer.reset()
        self.counted[name] += 1

    @asynccontextmanager
    async def _connect(self) -> AsyncGenerator[Peer]:
        async with Peer(await trio.open_tcp_stream("127.0.0.1", self._daemon.port), PATIENCE) as peer:
            yield peer

    async def _until(self, peer: Peer, awaited: bytes) -> None:
        data = b""
        while awaited not in data:
            chunk = await peer.receive()
            assert chunk, data
            data += chunk

    async def _hold(self) -> None:
        await trio.sleep(self._chance.uniform(0, MAX_HOLD))

    @asynccontextmanager
    async def reported_job(self) -> AsyncGenerator[None]:
        """Create `job`, and report progress on it ten times a second."""
        async with await trio.open_unix_socket(str(self._socket)) as stream, trio.open_nursery() as nursery:
            await stream.send_all(json.dumps({"ref": 1, **registered(self.job)}).encode() + b"\n")
            assert b'"ok":true' in await stream.receive_some()

            async def report() -> None:
                for step in itertools.count(1):
                    await stream.send_all(json.dumps(progress(self.job, step, 10**9)).encode() + b"\n")
                    await trio.sleep(0.1)

            nursery.start_soon(report)
            yield
            nursery.cancel_scope.cancel()

    # Watchers

    async def read(self, peer: Peer) -> None:
        path = self._chance.choice([f"/api/jobs/{self.job}", "/api/stats", "/api/jobs?limit=20", "/api/health"])
        expect(await peer.ask(path), 200)

    async def watch_by_websocket(self, peer: Peer) -> None:
        path = self._chance.choice([f"/ws/jobs/{self.job}", "/ws/jobs", f"/ws/jobs/{self.job}?interval=1"])
        await peer.open(path)
        await self._hold()
        if self._chance.random() < 0.5:
            await peer.send(close_frame(1000))
            await peer.rest()

    async def watch_many_topics(self, peer: Peer) -> None:
        await peer.open("/ws")
        topics = [f"job:{self.job}", "jobs"]
        await peer.send(frame(Opcode.TEXT, json.dumps({"type": "subscribe", "topics": topics}).encode()))
        await self._until(peer, b"subscribed")
        await self._hold()

    async def watch_by_events(self, peer: Peer) -> None:
        path = self._chance.choice([f"/api/jobs/{self.job}/events", "/api/events", "/api/events?interval=1"])
        await peer.send(request(path))
        await self._until(peer, b"retry")
        await self._hold()

    async def long_poll(self, peer: Peer) -> None:
        job = (await peer.ask(f"/api/jobs/{self.job}")).json
        await peer.send(request(f"/api/jobs/{self.job}?wait=60&since={job['cursor']}"))
        if self._chance.random() < 0.5:
            expect(await peer.response(), 200)

    # Requests that break off

    async def stay_half_open(self, peer: Peer) -> None:
        await peer.send(request("/api/stats")[: self._chance.randrange(20)])
        await peer.rest()  # until the daemon times out

    async def break_off_head(self, peer: Peer) -> None:
        await peer.send(request("/api/stats")[: self._chance.randrange(20)])
        await self._hold()

    async def cut_upload(self, peer: Peer) -> None:
        body = form(self._file())
        await self._post(peer, "/api/convert?pipeline=nothing", body, self._chance.random())

    async def cut_batch(self, peer: Peer) -> None:
        body = form(*[self._file("files")] * 3)
        await self._post(peer, "/api/batch?pipeline=nothing", body, self._chance.random())

    # Jobs

    async def upload(self, peer: Peer) -> None:
        await self._post(peer, "/api/convert?pipeline=nothing", form(self._file()))
        expect(accepted := await peer.response(), 202)
        await self._until_finished(f"/ws/jobs/{accepted.json['job_id']}")

    async def batch(self, peer: Peer) -> None:
        files = [self._file("files", SIZES[:2])] * self._chance.randint(2, 5)
        await self._post(peer, "/api/batch?pipeline=nothing", form(*files))
        expect(accepted := await peer.response(), 202)
        await self._until_finished(f"/ws/batch/{accepted.json['batch_id']}")

    async def job_over_http(self, peer: Peer) -> None:
        await self._post_json(peer, "/api/jobs", {"id": (job_id := str(uuid.uuid4())), "total_steps": 3})
        expect(await peer.response(), 201)
        for event in (progress(job_id, 1, 3), progress(job_id, 2, 3), completed(job_id)):
            await self._post_json(peer, f"/api/jobs/{job_id}/events", event)
            expect(await peer.response(), 200)
        await self._delete(job_id)

    async def job_over_unix(self, _peer: Peer) -> None:
        events = self._events_of(job_id := str(uuid.uuid4()))
        async with Peer(await trio.open_unix_socket(str(self._socket)), PATIENCE) as producer:
            await producer.send(b"".join(json.dumps({"ref": 1, **event}).encode() + b"\n" for event in events))
            await producer.stream.send_eof()
            assert (await producer.rest()).count(b'"ok":true') == len(events)
        await self._delete(job_id)

    async def job_over_websocket(self, peer: Peer) -> None:
        await peer.open("/ws/publish")
        events = self._events_of(job_id := str(uuid.uuid4()))
        lines = b"".join(json.dumps({"ref": event["type"], **event}).encode() + b"\n" for event in events)
        await peer.send(frame(Opcode.TEXT, lines))
        await self._until(peer, b'"completed"')
        await self._delete(job_id)

    def _events_of(self, job_id: str) -> list[dict[str, object]]:
        return [registered(job_id), *(progress(job_id, step, 5) for step in range(1, 6)), completed(job_id)]

    async def _until_finished(self, path: str) -> None:
        async with self._connect() as peer:
            await peer.open(path)
            assert await peer.close_code() == 1000

    async def _delete(self, job_id: str) -> None:
        async with self._connect() as peer:
            expect(await peer.ask(f"/api/jobs/{job_id}?purge=true", method="DELETE"), 200)

    def _file(self, name: str = "file", sizes: Sequence[int] = SIZES) -> bytes:
        return file_part(PDF.ljust(self._chance.choice(sizes)), name=name)

    async def _post_json(self, peer: Peer, path: str, value: object) -> None:
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        await peer.send(request(path, headers, method="POST") + body)

    async def _post(self, peer: Peer, path: str, body: bytes, part: float = 1) -> None:
        headers = {"Content-Length": str(len(body)), **FORM_TYPE}
        await peer.send(request(path, headers, method="POST") + body[: int(len(body) * part)])

    # Requests that are rejected

    async def bad_requests(self, peer: Peer) -> None:
        expect(await peer.ask("/api/none"), 404)
        expect(await peer.ask(f"/api/jobs/{uuid.uuid4()}"), 404)
        await peer.send(upgrade("/ws/jobs/none"))
        await self._until(peer, b" 400 ")


def anonymous_memory(daemon: ServedDaemon) -> float:
    """Return the MiB that belong to the process. Linux takes back pages of files as it likes."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("RssAnon"))) / 1024


async def measure(daemon: ServedDaemon, churn: Churn, seconds: float) -> list[float]:
    """Run the churn. Return the memory at each INTERVAL, and print it each minute."""
    samples = [anonymous_memory(daemon)]

    async def watch() -> None:
        for number in itertools.count():
            samples.append(anonymous_memory(daemon))
            if number % (60 / INTERVAL) == 0:
                print(f"{number * INTERVAL / 60:8.0f} min{churn.counted.total():12} operations{samples[-1]:8.1f} MiB")
            await trio.sleep(INTERVAL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await churn.run(seconds)
        nursery.cancel_scope.cancel()
    return samples


async def test_each_operation_succeeds(tmp_path: Path) -> None:
    names = WEIGHTS.keys() - {"stay_half_open"}  # it takes 10 s
    with served_daemon(tmp_path / "state", config=CONFIG) as daemon:
        churn = Churn(daemon, random.Random(1))
        async with churn.reported_job(), trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(churn.do, name)
    assert churn.counted.keys() == names


@pytest.mark.torture
async def test_memory_is_flat_while_clients_come_and_go(tmp_path: Path, rounds: int, seed: int) -> None:
    with (
        (tmp_path / "log").open("w") as log,
        served_daemon(tmp_path / "state", config=CONFIG, log=log) as daemon,
    ):
        churn = Churn(daemon, random.Random(seed))
        samples = await measure(daemon, churn, rounds * ROUND)
    assert not churn.errors
    third = len(samples) // 3
    growth = statistics.median(samples[2 * third :]) - statistics.median(samples[third : 2 * third])
    assert growth < GROWTH
