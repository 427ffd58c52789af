"""The nginx of docs/operations.md before the daemon, as it stands there."""

import json
from collections.abc import Iterator

import pytest
import trio
from http_client import FORM_TYPE, file_part, form
from machine import PROJECT, Machine
from peer import Peer
from samples import ID
from wsproto.frame_protocol import Opcode

from daemon import registered

PORT = 8000
HOST = "progress.example.org"
CONFIG = f"""
[server]
allowed_hosts = ["{HOST}"]
[pipelines.none]
command = ["true", "{{input}}"]
"""
SEEN = "$http_x_forwarded_for $http_x_forwarded_proto $http_host"  # of a request that the proxy has passed on


@pytest.fixture(scope="module", autouse=True)
def _nginx(machine: Machine) -> Iterator[None]:
    text = (PROJECT / "docs" / "operations.md").read_text().partition("```nginx\n")[2].partition("```")[0]
    _, _, server = text.partition("\nserver {")
    echoed = "server {" + server.replace(":8080", ":8001").replace("listen 8000", "listen 8002")
    http = 'access_log off; server { listen 8001; location / { return 200 "$SEEN"; } }'.replace("$SEEN", SEEN)
    machine.write("/run/proxy.conf", f"pid /run/proxy.pid; events {{}} http {{ {http} {text} {echoed} }}")
    machine.write("/etc/progressd/progressd.toml", CONFIG)
    machine.run("systemctl", "start", "progressd.socket", "progressd.service")
    machine.run("systemd-run", "--unit", "proxy", "nginx", "-c", "/run/proxy.conf", "-g", "daemon off;")
    machine.eventually(lambda: all(is_open(machine, port) for port in (8000, 8001, 8002)))
    yield
    machine.run("systemctl", "stop", "proxy.service", "progressd.socket", "progressd.service")


def is_open(machine: Machine, port: int) -> bool:
    try:
        machine.connect(port).close()
    except ConnectionRefusedError:
        return False
    return True


async def through(machine: Machine) -> Peer:
    sock = machine.connect(PORT)
    sock.setblocking(False)
    return Peer(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))


async def test_websockets_go_through(machine: Machine) -> None:
    async with await through(machine) as peer:
        await peer.open("/ws/jobs", {"Host": HOST, "Origin": f"http://{HOST}"})
        assert machine.report(registered(ID))["ok"]
        opcode, payload = await peer.next_frame()
        assert (opcode, json.loads(payload)["type"]) == (Opcode.TEXT, "job_created")


async def test_events_come_at_once(machine: Machine) -> None:
    async with await through(machine) as peer:
        await peer.send(f"GET /api/events HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += await peer.receive()
        job = machine.request("POST", "/api/jobs", b'{"kind": "scan"}', Content_Type="application/json").json["id"]
        while job.encode() not in seen:
            seen += await peer.receive()


def test_the_daemon_is_told_who_asks_and_how(machine: Machine) -> None:
    assert machine.request("GET", "/", port=8002, Host=HOST).body.decode() == f"127.0.0.1 http {HOST}"


def test_uploads_go_through_and_foreign_hosts_do_not(machine: Machine) -> None:
    headers = {name.replace("-", "_"): value for name, value in FORM_TYPE.items()}
    sent = machine.request("POST", "/api/convert?pipeline=none", form(file_part()), port=PORT, Host=HOST, **headers)
    assert sent.status == 202
    assert machine.request("GET", "/api/jobs", port=PORT, Host="evil.example").status == 403
