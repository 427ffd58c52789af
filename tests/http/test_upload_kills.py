"""Resumable uploads of a daemon that is killed with SIGKILL."""

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
from support.serving import ServedDaemon, served_daemon
from support.tus import OCTETS, TUS, encoded
from support.waiting import until

COPY = """
[pipelines.copy]
command = ["cp", "{input}", "{output}"]
accept = ["*/*"]
"""
FILE = bytes(range(256)) * 20_000


def head_of(daemon: ServedDaemon, url: str) -> int:
    """Return the offset of an upload, once no other request holds it."""
    answers = list[httpx.Response]()

    def is_free() -> bool:
        answers.append(daemon.request("HEAD", url, headers=TUS))
        return answers[-1].status_code != 423

    until(is_free)
    assert answers[-1].status_code == 200
    return int(answers[-1].headers["Upload-Offset"])


def send(daemon: ServedDaemon, url: str, offset: int, upto: int) -> socket.socket:
    """Send a part of a PATCH that announces the rest of the file."""
    sock = socket.create_connection(("127.0.0.1", daemon.port))
    fields = {**OCTETS, "Upload-Offset": offset, "Content-Length": len(FILE) - offset}
    head = [f"PATCH {url} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in fields.items()), "\r\n"]
    sock.sendall("\r\n".join(head).encode() + FILE[offset:upto])
    return sock


def test_a_killed_daemon_continues_and_creates_each_job_once(tmp_path: Path) -> None:
    state, partial = tmp_path / "state", tmp_path / "state" / "partial"
    metadata = {"Upload-Length": str(len(FILE)), "Upload-Metadata": encoded(filename="a.bin", pipeline="copy")}

    def received(url: str) -> int:
        path = partial / url.rpartition("/")[2]
        return path.stat().st_size if path.exists() else len(FILE)

    with served_daemon(state, config=COPY) as daemon, ExitStack() as connections:
        answers = [daemon.request("POST", "/api/uploads", headers={**TUS, **metadata}) for _ in range(2)]
        half, whole = (answer.headers["Location"] for answer in answers)
        with send(daemon, half, 0, 1_000_000):
            until(lambda: received(half) > 900_000)
        reported = head_of(daemon, half)
        assert 0 < reported <= 1_000_000
        connections.enter_context(send(daemon, half, reported, 3_000_000))
        until(lambda: received(half) >= 2_000_000)
        connections.enter_context(send(daemon, whole, 0, len(FILE)))
        until(lambda: received(whole) == len(FILE))
        daemon.kill()
    with served_daemon(state, config=COPY) as daemon:
        assert head_of(daemon, whole) == len(FILE)
        offset = head_of(daemon, half)
        assert 2_000_000 <= offset <= 3_000_000
        assert (partial / half.rpartition("/")[2]).read_bytes() == FILE[:offset]
        assert daemon.request(
            "PATCH", half, headers={**OCTETS, "Upload-Offset": str(offset)}, content=FILE[offset:]
        ).is_success
        for url in (half, whole):
            job_id = url.rpartition("/")[2]
            daemon.completed(job_id)
            assert daemon.request("GET", f"/api/jobs/{job_id}/download").content == FILE
        assert daemon.request("GET", "/api/jobs").json()["total"] == 2
