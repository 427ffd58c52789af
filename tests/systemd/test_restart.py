"""A restart rejects no connection: clients wait for the new daemon, and watchers reconnect without a gap."""

import json
import uuid
from pathlib import Path
from typing import Any

import trio
from support.daemon import registered
from support.http_client import FORM_TYPE, file_part, form, options_part
from support.machine import PORT, Machine
from support.peer import Peer
from support.waiting import eventually
from wsproto.frame_protocol import Opcode

SCAN = Path(__file__).parents[2] / "daemon/progressd_pdf/scan/sample-scan.pdf"
HOST = {"Host": "localhost"}
WATCHERS = 20
PATIENCE = 60.0
CONFIG = """
[limits]
max_connections = 500
max_connections_per_address = 500
"""

LONG = """
[shutdown]
drain_timeout = "0.5s"
[runner]
kill_grace = "0.3s"
[pipelines.long]
command = ["sh", "-c", '''
began=/var/lib/progressd/began
if [ -e $began ]; then
    while read pid; do if kill -0 $pid; then echo "$pid still runs" >&2; exit 1; fi; done < $began
    exit 0
fi
trap "" TERM
setsid sleep 1000 &
echo $! > $began.part
echo $$ >> $began.part
mv $began.part $began
while :; do sleep 1000; done
''', "{input}"]
"""


class Load:
    """Continuous watchers, a producer and requests, and their results."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ready = 0
        self.shutdowns = 0
        self.codes: list[int] = []
        self.returns = 0
        self.reported: list[str] = []
        self.seen: list[list[str]] = []
        self.mine: set[str] = set()
        self.enough = False
        self.reported_all = trio.Event()

    async def connect(self) -> Peer:
        sock = self.machine.tcp_socket()
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        await stream.socket.connect(("127.0.0.1", PORT))
        return Peer(stream, PATIENCE)

    async def watch(self) -> None:
        """Receive every new job once and in order, across reconnections."""
        seen: list[str] = []
        self.seen.append(seen)
        cursor = ""
        while True:
            async with await self.connect() as peer:
                since = f"&since={cursor}" if cursor else ""
                await peer.open(f"/ws/jobs?types=job_created{since}", HOST)
                self.ready += 1
                self.returns += cursor != ""
                while True:
                    opcode, payload = await peer.next_frame()
                    if opcode is Opcode.CLOSE:
                        self.codes.append(payload[0])
                        break
                    message = json.loads(payload) if opcode is Opcode.TEXT else {}
                    assert message.get("type") != "resync"
                    cursor = message.get("cursor", cursor)
                    self.shutdowns += message.get("type") == "server_shutdown"
                    if message.get("type") == "job_created" and message["job_id"] in self.mine:
                        seen.append(message["job_id"])

    async def report(self) -> None:
        """Report a new job fifty times a second. Reconnect when the daemon closes the connection."""
        while not self.enough:
            plain = self.machine.connect_unix()
            plain.setblocking(False)
            await self._report_on(trio.SocketStream(trio.socket.from_stdlib_socket(plain)))
        self.reported_all.set()

    async def _report_on(self, stream: trio.SocketStream) -> None:
        async with stream:
            while not self.enough:
                job_id = str(uuid.uuid4())
                self.mine.add(job_id)
                try:
                    await stream.send_all(json.dumps({"ref": 1, **registered(job_id)}).encode() + b"\n")
                    answer = await stream.receive_some()
                except trio.BrokenResourceError:
                    answer = b""
                if not answer:
                    return
                assert json.loads(answer)["ok"], answer
                self.reported.append(job_id)
                await trio.sleep(0.02)

    async def ask(self) -> None:
        """Send a request on a new connection fifty times a second."""
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._ask_once)
                await trio.sleep(0.02)

    async def _ask_once(self) -> None:
        async with await self.connect() as peer:
            response = await peer.ask("/api/health/live", {**HOST, "Connection": "close"})
        assert response.status == 200, response


def job_in(machine: Machine, job_id: str) -> Any:
    return machine.request("GET", f"/api/jobs/{job_id}").json


async def running_job(machine: Machine, pipeline: str, *options: bytes) -> str:
    """Submit a scan, and return the id of its job once it has started."""
    body = form(file_part(SCAN.read_bytes()), *options)
    headers = {name.replace("-", "_"): value for name, value in FORM_TYPE.items()}
    job_id = str(machine.request("POST", f"/api/convert?pipeline={pipeline}", body, **headers).json["job_id"])
    await eventually(lambda: job_in(machine, job_id)["status"] != "queued")
    return job_id


async def test_a_restart_under_load(machine: Machine) -> None:
    machine.write("/etc/progressd/progressd.toml", CONFIG)
    machine.run("systemctl", "start", "progressd.socket", "progressd.service")
    load = Load(machine)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(WATCHERS):
                nursery.start_soon(load.watch)
            nursery.start_soon(load.report)
            nursery.start_soon(load.ask)
            await eventually(lambda: load.ready == WATCHERS, PATIENCE)
            job_id = await running_job(machine, "pdf", options_part({"dpi": 100, "upscale": False, "rotate": False}))
            await trio.run_process(machine.inside("systemctl", "restart", "progressd.service"))
            await eventually(lambda: load.returns == WATCHERS, PATIENCE)
            before = len(load.reported)
            await eventually(lambda: len(load.reported) > before + 20, PATIENCE)
            load.enough = True
            await load.reported_all.wait()
            await eventually(lambda: all(seen[-1] == load.reported[-1] for seen in load.seen), PATIENCE)
            nursery.cancel_scope.cancel()
    job = job_in(machine, job_id)
    assert (job["status"], job["attempt"]) == ("completed", 1)
    assert load.codes == [1001] * WATCHERS
    assert load.shutdowns == WATCHERS
    for seen in load.seen:
        mine = [one for one in seen if one in set(load.reported)]
        assert mine == load.reported[-len(mine) :]


async def test_a_job_longer_than_the_drain_is_requeued(machine: Machine) -> None:
    machine.write("/etc/progressd/progressd.toml", LONG)
    machine.run("systemctl", "reload-or-restart", "progressd.service")
    job_id = await running_job(machine, "long")
    began = machine.root / "var/lib/progressd/began"
    await eventually(began.exists)
    machine.run("systemctl", "restart", "progressd.service")
    await eventually(lambda: job_in(machine, job_id)["status"] in ("completed", "failed"))
    job = job_in(machine, job_id)
    assert (job["status"], job["attempt"]) == ("completed", 1), job  # a clean stop does not count as an attempt
    assert len(began.read_text().split()) == 2
    assert machine.state("progressd.service")["Result"] == "success"
    assert "job requeued" in machine.log("progressd.service")
