"""Whatever comes in over the port is an answer or an end: never a crash, an error of the daemon's, or a leak."""

import contextlib
import random
import re
from pathlib import Path

import pytest
import trio
from http_client import BOUNDARY, FORM_TYPE, file_part, form, options_part
from peer import frame, request, upgrade
from progressd.auth.addresses import client_address, networks
from progressd.auth.browsers import check_host, check_origin
from progressd.auth.tokens import read_token
from progressd.config.settings import Server
from progressd.core.cursor import Cursor
from progressd.core.errors import ProgressdError
from progressd.core.requests import checked_topic
from progressd.producers.lines import LineSplitter, read_line
from progressd.ws.handshake import read_wish
from progressd.ws.listener import read_upgrade
from samples import ID
from waiting import eventually
from wsproto.frame_protocol import Opcode

from daemon import RunningDaemon, completed, progress, registered, running_daemon

FORM = form(file_part(), options_part({"dpi": 300}))
LINES = b'{"type":"progress","job_id":"%s","data":{"current_step":1,"total_steps":2}}\n' % ID.encode() * 3
CORPUS = [
    request("/api/jobs?limit=5&offset=0&status=queued&label=a=b"),
    request(f"/api/jobs/{ID}", {"If-None-Match": '"x"', "Range": "bytes=0-5"}),
    request(f"/api/jobs/{ID}?since=cd06f405-30&wait=0"),
    request(f"/api/jobs/{ID}/events", {"Last-Event-ID": "cd06f405-30", "Connection": "close"}),
    request(f"/api/jobs/{ID}", {"Authorization": "Bearer pgd_x", "X-Forwarded-For": "1.1.1.1, ::1"}),
    request("/static/main.js", {"Accept-Encoding": "gzip", "Cookie": "a=b; c=d"}),
    request("/api/metrics", {"Accept": "application/openmetrics-text;version=1.0.0"}),
    request("/api/jobs", {"Content-Length": "38"}, method="POST") + b'{"kind":"a","labels":{"team":"scan"}}\n',
    request("/api/events", {"Content-Type": "application/x-ndjson", "Content-Length": str(len(LINES))}, method="POST")
    + LINES,
    request("/api/events", {"Transfer-Encoding": "chunked"}, method="POST")
    + b'5;x=y\r\n{"a":\r\n1\r\n1\r\n0\r\nT: x\r\n\r\n',
    request("/api/convert", {**FORM_TYPE, "Content-Length": str(len(FORM))}, method="POST") + FORM,
    request("/api/batch", {**FORM_TYPE, "Content-Length": str(len(FORM))}, method="POST") + FORM,
    upgrade(f"/ws/jobs/{ID}?since=cd06f405-30&interval=0.5&types=progress,error") + frame(Opcode.PING, b"x"),
    upgrade("/ws?token=a.b.c", {"Sec-WebSocket-Protocol": "progressd, progressd.token.a.b.c"}),
    upgrade("/ws") + frame(Opcode.TEXT, b'{"type":"subscribe","topics":["jobs"],"since":"x"}') + frame(Opcode.CLOSE),
    upgrade("/ws/jobs", {"Origin": "http://daemon"}) + frame(Opcode.TEXT, b"a", final=False) + frame(0, b"b"),
]
WORDS = [
    *(b"\r\n", b"\n", b"\0", b"\xff", b"%00", b"%2e%2e%2f", b"..", b"{", b"[" * 200, b'"', b"\\u0000", b"-1", b"1e999"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 9999999999999999999\r\n", b"Host: x\r\n", b"HTTP/1.0"),
    *(b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"HTTP/2.0", b"PRI * ", b"GET http://[ ", b";q=", b"\x80"),
    BOUNDARY.encode(),
]


def mutated(dice: random.Random) -> bytes:
    """One of the corpus with up to six changes."""
    data = bytearray(dice.choice(CORPUS))
    for _ in range(dice.randint(0, 6)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[at : at + dice.randint(1, 40)]
            case 2:
                data[at:at] = dice.choice(WORDS)
            case 3:
                other = dice.choice(CORPUS)
                data[at:] = other[dice.randrange(len(other)) :]
            case 4:
                data[at:at] = data[at : at + dice.randint(1, 200)] * dice.randint(1, 20)
            case 5:
                data[at : at + 1] = bytes([data[at] ^ 1 << dice.randrange(8)]) if at < len(data) else b""
    return bytes(data)


def parse(data: bytes) -> None:
    """What decides on strangers' text without a connection."""
    text = data.decode("latin-1")[:400]
    for decide in (
        lambda: read_wish(f"/ws{text}"),
        lambda: read_wish(f"/ws/jobs?{text}"),
        lambda: Cursor.parse(text),
        lambda: checked_topic(text),
        lambda: read_token("s" * 64, text),
        lambda: check_host(text, Server()),
        lambda: check_origin(text, text, Server()),
        lambda: [read_line(number, line) for number, line in LineSplitter(4096).feed(data)],
    ):
        with contextlib.suppress(ProgressdError):
            decide()
    read_upgrade(data)
    client_address("10.0.0.1", [(b"forwarded", data), (b"x-forwarded-for", data)], networks(("10.0.0.0/8",)))


async def said(daemon: RunningDaemon, data: bytes) -> bytes:
    """Send it, say that nothing more comes, and leave once an answer has begun or the connection is over."""
    async with await daemon.connect() as stream:
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(2):
            await stream.send_all(data)
            await stream.send_eof()
            return bytes(await stream.receive_some(4096))
    return b""


def running(daemon: RunningDaemon) -> list[str]:
    """The jobs of pipelines that have not finished."""
    return [job.id for job in daemon.daemon.registry.unfinished.values() if job.pipeline is not None]


async def fuzz(tmp_path: Path, cases: int, seed: int) -> None:
    limits = {"handshake_timeout": 1, "max_upload_bytes": 100_000, "max_connections": 10_000}
    async with running_daemon(tmp_path, limits={**limits, "max_connections_per_address": 10_000}) as daemon:
        await daemon.report(registered(ID), progress(ID, 1), completed(ID))
        room = trio.CapacityLimiter(16)
        bad: list[tuple[int, bytes]] = []

        async def one(number: int) -> None:
            data = mutated(random.Random(f"{seed}.{number}"))
            async with room:
                answer = await said(daemon, data)
            if re.search(rb"HTTP/1.1 5(?!01|03|05)", answer):
                bad.append((number, data))

        async def all_of(numbers: range) -> None:
            async with trio.open_nursery() as nursery:
                for number in numbers:
                    nursery.start_soon(one, number)

        await all_of(range(100))  # after which all is there that is made when it is first needed
        await eventually(lambda: not running(daemon))
        before = await daemon.settled()
        for start in range(100, cases, 500):
            await all_of(range(start, min(start + 500, cases)))
        assert not bad, bad[:3]
        await eventually(lambda: not running(daemon), max(30, cases / 50))  # files of the corpus are converted
        await eventually(lambda: daemon.census().tasks <= before.tasks and not daemon.census().topics)
        assert b" 200 " in await said(daemon, request("/api/health/live"))


def test_no_text_makes_what_reads_it_fail() -> None:
    dice = random.Random(7)
    for _ in range(20_000):
        parse(mutated(dice))


async def test_no_request_makes_the_daemon_fail(tmp_path: Path) -> None:
    await fuzz(tmp_path, 3_000, seed=1)


@pytest.mark.torture
def test_no_text_of_900_000_makes_what_reads_it_fail() -> None:
    dice = random.Random(8)
    for _ in range(900_000):
        parse(mutated(dice))


@pytest.mark.torture
async def test_no_request_of_100_000_makes_the_daemon_fail(tmp_path: Path) -> None:
    await fuzz(tmp_path, 100_000, seed=2)
