"""Churn: clients of every kind connect, break off or finish, and leave, many times a second."""

import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import trio
from support.daemon import completed, progress, registered
from support.http_client import FORM_TYPE, file_part, form
from support.peer import Peer, Response, close_frame, frame, request, upgrade
from support.serving import ServedDaemon
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
HOLD = 1.0  # seconds for which a client stays connected at most
MOST = 50  # operations at a time
PATIENCE = 60.0  # seconds that one wait may take, where the machine does not keep up
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
        self._chance = chance

    async def run(self, seconds: float, rate: float) -> None:
        """Start `rate` operations a second, while a producer reports on `job`. Errors go to `errors`."""
        limiter = trio.CapacityLimiter(MOST)
        await self.register_job()
        async with trio.open_nursery() as reporting:
            reporting.start_soon(self.report_on_job)
            async with trio.open_nursery() as nursery:
                due = trio.current_time()
                until = due + seconds
                while due < until:
                    await trio.sleep_until(due)
                    await limiter.acquire_on_behalf_of(operation := object())
                    name = self._chance.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
                    nursery.start_soon(self._one, name, limiter, operation)
                    due = max(due + 1 / rate, trio.current_time() - 1)  # catch up by a second at most
            reporting.cancel_scope.cancel()

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
        await trio.sleep(self._chance.uniform(0, HOLD))

    async def register_job(self) -> None:
        """Create `job`."""
        async with self._connect() as peer:
            await self._post_json(peer, "/api/jobs", {"id": self.job})
            expect(await peer.response(), 201)

    async def report_on_job(self) -> None:
        """Report progress on `job` ten times a second."""
        step = 0
        async with await trio.open_unix_socket(str(self._daemon.state_dir / "ingest.sock")) as stream:
            while True:
                step += 1
                await stream.send_all(json.dumps(progress(self.job, step, 10**9)).encode() + b"\n")
                await trio.sleep(0.1)

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
        async with Peer(await trio.open_unix_socket(str(self._daemon.state_dir / "ingest.sock")), PATIENCE) as producer:
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
