"""The daemon behind the proxies, configured as in docs/operations.md."""

import json
from collections.abc import Callable, Iterator

import pytest
import trio
from support.daemon import registered
from support.http_client import FORM_TYPE, file_part, form
from support.machine import PROJECT, Machine
from support.peer import Peer
from support.samples import job_id

HOST = "progress.example.org"
CLIENT = "127.0.0.9"
CONFIG = f"""
[server]
allowed_hosts = ["{HOST}"]
trusted_proxies = ["127.0.0.1"]
[pipelines.none]
command = ["true", "{{input}}"]
"""
MODULES = ("mpm_event", "authz_core", "proxy", "proxy_http", "headers")


def documented(name: str) -> str:
    """Return the example in the documentation."""
    return (PROJECT / "docs" / "operations.md").read_text().partition(f"```{name}\n")[2].partition("```")[0]


def nginx(machine: Machine, port: int) -> list[str]:
    http = f"access_log off; {documented('nginx').replace('listen 8000', f'listen {port}')}"
    machine.write("/run/nginx.conf", f"pid /run/nginx.pid; events {{}} http {{ {http} }}")
    return ["nginx", "-c", "/run/nginx.conf", "-g", "daemon off;"]


def caddy(machine: Machine, port: int) -> list[str]:
    text = documented("caddyfile").replace(HOST, f"http://{HOST}:{port}")  # without it, Caddy asks for a certificate
    machine.write("/run/Caddyfile", f"{{\nadmin off\n}}\n{text}")
    return ["env", "HOME=/run", "caddy", "run", "--config", "/run/Caddyfile", "--adapter", "caddyfile"]


def apache(machine: Machine, port: int) -> list[str]:
    modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in MODULES)
    general = (
        f"Listen {port}\nServerName localhost\nPidFile /run/apache.pid\nErrorLog /dev/null\nDefaultRuntimeDir /run\n"
    )
    machine.write(
        "/run/apache.conf",
        f"{modules}{general}DefaultRuntimeDir /run\n" + documented("apache").replace("*:80", f"*:{port}"),
    )
    return ["apache2", "-f", "/run/apache.conf", "-D", "FOREGROUND"]


STARTED: dict[str, Callable[[Machine, int], list[str]]] = {"nginx": nginx, "caddy": caddy, "apache": apache}


@pytest.fixture(scope="module")
def _daemon(machine: Machine) -> None:
    machine.write("/etc/progressd/progressd.toml", CONFIG)
    machine.run("systemctl", "start", "progressd.socket", "progressd.service")


@pytest.fixture(scope="module", params=STARTED)
def port(request: pytest.FixtureRequest, machine: Machine, _daemon: None) -> Iterator[int]:
    """The port of a proxy for the daemon."""
    name = request.param
    port = 8010 + list(STARTED).index(name)
    machine.run("systemd-run", "--unit", f"proxy-{name}", *STARTED[name](machine, port))
    machine.eventually(lambda: is_open(machine, port))
    yield port
    machine.run("systemctl", "stop", f"proxy-{name}.service")


def is_open(machine: Machine, port: int) -> bool:
    try:
        machine.connect(port).close()
    except ConnectionRefusedError:
        return False
    return True


async def through(machine: Machine, port: int) -> Peer:
    sock = machine.connect(port, CLIENT)
    sock.setblocking(False)
    return Peer(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))


async def test_the_log_has_the_clients_address(machine: Machine, port: int) -> None:
    since = machine.log("progressd.service").count(f"peer={CLIENT}")
    async with await through(machine, port) as peer:
        await peer.open("/ws/jobs?types=job_created", {"Host": HOST, "Origin": f"http://{HOST}"})
        assert machine.report(registered(job_id(port)))["ok"]
        while job_id(port) not in (text := (await peer.next_frame())[1]):
            assert json.loads(text)["type"] == "job_created"
    machine.eventually(lambda: machine.log("progressd.service").count(f"peer={CLIENT}") > since)


async def test_events_are_not_buffered_and_disconnects_noticed(
    request: pytest.FixtureRequest, machine: Machine, port: int
) -> None:
    async with await through(machine, port) as peer:
        await peer.send(f"GET /api/events HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += await peer.receive()
        job = register(machine)
        while job.encode() not in seen:
            seen += await peer.receive()

    def is_missed() -> bool:
        if request.node.callspec.params["port"] == "apache":  # which looks for its client when it next writes
            register(machine)
        return streams(machine) == 0

    machine.eventually(is_missed)


def register(machine: Machine) -> str:
    return str(machine.request("POST", "/api/jobs", b'{"kind": "scan"}', Content_Type="application/json").json["id"])


def streams(machine: Machine) -> float:
    lines = machine.request("GET", "/api/metrics").body.decode().splitlines()
    [count] = [line for line in lines if line.startswith("progressd_http_streams ")]
    return float(count.split()[1])


def test_uploads_work_and_foreign_hosts_are_rejected(machine: Machine, port: int) -> None:
    headers = {name.replace("-", "_"): value for name, value in FORM_TYPE.items()}
    sent = machine.request("POST", "/api/convert?pipeline=none", form(file_part()), port=port, Host=HOST, **headers)
    assert sent.status == 202
    rejected = machine.request("GET", "/api/jobs", port=port, Host="evil.example")
    assert b'"jobs"' not in rejected.body
    assert b'"jobs"' in machine.request("GET", "/api/jobs", port=port, Host=HOST).body
