"""Fuzzing: every input ends in a response or a closed connection, never in a crash, an internal error or a leak.

    make torture ARGS="tests/auth/test_fuzz.py --seed 1"       # a million cases, in ten parts
    make torture ARGS="tests/auth/test_fuzz.py --seed 1 -k part3"

A failing case is printed with its seed and its bytes.
"""

import contextlib
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import pytest
import structlog
import trio
from msgspec.structs import replace
from progressd.auth.api_keys import read_keys
from progressd.auth.limits import client_address
from progressd.auth.watch_tokens import read_token
from progressd.config.load import load
from progressd.config.settings import BUILT_IN_PIPELINES, Server
from progressd.core.errors import ProgressdError
from progressd.core.json import decode
from progressd.core.messages import Cursor
from progressd.http.response import attachment
from progressd.net.handshake import read_handshake
from progressd.net.request import check_host, check_origin
from progressd.producers.ndjson import LineSplitter, read_line
from progressd.system import log
from progressd.ws.server import read_stream_request
from progressd.ws.subscriptions import checked_topic, decode_request
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon, status_change
from support.fuzzing import CORPUS, JOBS, Case, job_in
from support.peer import close_frame, frame, frames_in, request, upgrade
from support.samples import job_id
from support.waiting import eventually
from wsproto.frame_protocol import Opcode

FAILED: Final = re.compile(rb"HTTP/1\.[01] 5(?!01|05)")  # except 501 and 505: transfer codings and HTTP/2
PATIENCE: Final = 0.05  # seconds that clients with an incomplete request wait for a response
LEFT: Final = 25.0  # seconds in which every connection has to end after the last input
GROWTH_MOST: Final = 24 << 20  # bytes of memory from the first tenth to the end of a part
LIMITS: Final = {
    "max_upload_bytes": 100_000,
    **dict.fromkeys(("max_connections", "max_connections_per_address", "max_uploads"), 10_000),
}
TAKEN: Final = (
    "forms 202",
    "bodies 201",
    "chunks 200",
    "handshakes 101",
    "messages answered",
    "lines taken",
    "lines published",
)
WS_PATHS: Final = ("/ws", "/ws/jobs", f"/ws/jobs/{JOBS[0]}", "/ws?interval=1", "/ws/publish")


class Trial(logging.Handler):
    """The failures, among them errors in the daemon's log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.wrong: list[str] = []
        self.under_way: set[Sequence[Case]] = set()
        self.answers: Counter[str] = Counter()  # by input, and beginning of the response

    def emit(self, record: logging.LogRecord) -> None:
        self.blame(f"logged {record.getMessage()!r}", *self.under_way)

    def log(self, _logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if method in ("error", "critical"):
            self.blame(f"logged {event!r}", *self.under_way)
        return event

    def blame(self, what: str, *tried: Sequence[Case]) -> None:
        self.wrong.append("\n".join([what, *(str(case) for cases in tried for case in cases)]))

    @contextmanager
    def of(self, *cases: Case) -> Iterator[list[bytes]]:
        """Within this, the cases run. Yields their bytes."""
        self.under_way.add(cases)
        try:
            yield [case.data for case in cases]
        except trio.TooSlowError:
            self.blame("there was no end", cases)
        finally:
            self.under_way.discard(cases)


async def exchanged(stream: trio.SocketStream, data: bytes, wait: float = 0, most: int = sys.maxsize) -> bytes:
    """Send data, and return the response until the connection ends, or `most` bytes of it.

    The daemon takes a client that has closed its side for gone, so wait so many seconds for the first bytes before.
    """
    answer = b""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(LEFT):
            await stream.send_all(data)
            with trio.move_on_after(wait):
                answer = bytes(await stream.receive_some(65536))
            await stream.send_eof()
            while len(answer) < most and (received := await stream.receive_some(65536)):
                answer += received
    return answer


async def ask(daemon: RunningDaemon, trial: Trial, *cases: Case) -> None:
    """Send requests, each on its own connection. Some clients wait for the response, some disconnect during it."""
    for case in cases:
        patience = LEFT if case.kind in ("forms", "bodies") else PATIENCE
        wait, most = ((0, sys.maxsize), (patience, sys.maxsize), (patience, 1))[case.number % 3]
        with trial.of(case) as data:
            answer = await exchanged(await daemon.connect(), data[0], wait, most)
            trial.answers[f"{case.kind} {answer[9:12].decode()}"] += 1
            if FAILED.search(answer):
                trial.blame(f"answered {answer[:500]!r}", [case])


async def say(daemon: RunningDaemon, trial: Trial, *cases: Case) -> None:
    """Send messages in valid frames on one WebSocket, and invalid data at the end."""
    cases = (*cases[:-1], cases[-1]._replace(kind="frames"))
    with trial.of(*cases) as data:
        path = WS_PATHS[cases[0].number % len(WS_PATHS)]
        sent = [*(frame(Opcode.TEXT, one) for one in data[:-1]), data[-1]]
        answer = await exchanged(await daemon.connect(), upgrade(path) + b"".join(sent), LEFT)
        trial.answers["messages answered"] += answer.count(b'{"type":"')
        trial.answers["messages refused"] += answer.count(b'{"type":"refused"')
        if not answer.startswith(b"HTTP/1.1 101 ") or b"\x03\xf3" in answer[-125:]:  # 1011, an internal error
            trial.blame(f"answered {answer[:100]!r}…{answer[-125:]!r}", cases)


async def report(daemon: RunningDaemon, trial: Trial, *cases: Case) -> None:
    """Send lines on one connection: to the Unix socket, or as messages of a WebSocket."""
    with trial.of(*cases) as data:
        lines = b"\n".join([*data, b'{"ref":"last"}'])
        if cases[0].number // len(cases) % 2:
            message = frame(Opcode.BINARY, lines) + close_frame(1000)
            said = await exchanged(await daemon.connect(), upgrade("/ws/publish") + message, LEFT)
            answer = b"\n".join(
                payload for opcode, payload in frames_in(said.partition(b"\r\n\r\n")[2]) if opcode is Opcode.TEXT
            )
            trial.answers["lines published"] += answer.count(b'"ok":true')
        else:
            stream = trio.SocketStream(trio.socket.socket(trio.socket.AF_UNIX))
            await stream.socket.connect(str(daemon.settings.ingest.socket))
            answer = await exchanged(stream, lines)
        trial.answers["lines refused"] += answer.count(b'"ok":false')
        trial.answers["lines taken"] += answer.count(b'"ok":true')
        try:
            last = [json.loads(line).get("line") for line in answer.splitlines()][-1:]
        except ValueError:
            last = []
        if last != [lines.count(b"\n") + 1] and b"of them are taken" not in answer:
            trial.blame(f"answered {answer!r}", cases)


def read_config(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    load(path, {"PROGRESSD_SERVER_PORT": data.decode("latin-1")[:6]} if len(data) % 2 else {}, {})


def read_key_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_keys(path)


def named(name: str) -> None:
    header = attachment(name)
    assert header.isascii()
    assert header.isprintable()


LAST: Final = job_id(9)
NEAR: Final = ("10.0.0.0/8",)
DECIDE: Final[dict[str, Callable[[bytes, str, Path], object]]] = {
    "cursors": lambda _data, text, _path: Cursor.parse(text),
    "tokens": lambda _data, text, _path: read_token("s" * 64, text),
    "topics": lambda _data, text, _path: checked_topic(text),
    "targets": lambda _data, text, _path: read_stream_request(text),
    "hosts": lambda _data, text, _path: (check_origin(text, text, Server()), check_host(text, Server())),
    "addresses": lambda data, _text, _path: client_address("10.0.0.1", [(b"x-forwarded-for", data)], NEAR),
    "names": lambda _data, text, _path: named(text),
    "messages": lambda data, _text, _path: decode(decode_request, data, "a request"),
    "lines": lambda data, _text, _path: [read_line(*line) for line in LineSplitter(4096).feed(data + b"\n")],
    "handshakes": lambda data, _text, _path: read_handshake(data),
    "keys": lambda data, _text, path: read_key_file(path, data),
    "config": lambda data, _text, path: read_config(path, data),
}


def decide(trial: Trial, path: Path, cases: Iterable[Case]) -> None:
    """Call the parsers of external input without a connection. They return, or raise an expected error."""
    for case in cases:
        data = case.data
        try:
            DECIDE[case.kind](data, data.decode("utf-8" if case.number % 2 else "latin-1", "replace"), path)
        except ProgressdError:
            pass
        except Exception as error:
            trial.blame(repr(error), [case])


@contextmanager
def logging_to(trial: Trial) -> Iterator[None]:
    """Within this, errors in the daemon's log are failures."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with open(os.devnull, "w") as null:
        log.configure(format="logfmt", stream=null)
        processors = [trial.log, *structlog.get_config()["processors"]]
        structlog.configure(processors, cache_logger_on_first_use=False)  # else later tests would log here
        root.addHandler(trial)
        try:
            yield
        finally:
            log.close()
            root.handlers = handlers
            root.setLevel(level)
            structlog.reset_defaults()


@asynccontextmanager
async def tried(tmp_path: Path, trial: Trial) -> AsyncGenerator[RunningDaemon]:
    """A daemon with everything that the corpus refers to. At the end, it must be healthy and have leaked nothing."""
    with logging_to(trial):
        async with running_daemon(
            tmp_path,
            limits=LIMITS,
            pipelines={"pdf": replace(BUILT_IN_PIPELINES["pdf"], command=("cp", "{input}", "{output}"))},
        ) as daemon:
            yield daemon
            assert b" 200 " in await exchanged(await daemon.connect(), request("/api/health/live"), LEFT)
            await daemon.report(registered(LAST), progress(LAST, 1), completed(LAST))
            assert (await daemon.daemon.registry.get(LAST)).completed_at is not None


async def cleared(daemon: RunningDaemon, step: int) -> None:
    """Delete all jobs except those of a step."""
    await eventually(lambda: all(job.pipeline is None for job in daemon.daemon.registry.unfinished.values()), 60)
    await daemon.report(*(status_change(id_, "cancelled") for id_ in daemon.daemon.registry.unfinished))
    await daemon.report(*(registered(job_in(step, job)) for job in JOBS))


SHARES: Final = {
    **dict.fromkeys(("requests", "chunks", "forms", "bodies", "handshakes"), (ask, 1, 0.05)),
    "messages": (say, 5, 0.25),
    "lines": (report, 50, 0.2),
}


async def fuzz(tmp_path: Path, cases: int, seed: str) -> None:
    """Run this many cases, of which 3 in 10 need no connection."""
    trial = Trial()
    texts = [kind for kind in DECIDE if kind in CORPUS]
    async with tried(tmp_path, trial) as daemon:
        room = trio.CapacityLimiter(50)

        async def one(step: int, kind: str, numbers: range) -> None:
            async with room:
                await SHARES[kind][0](daemon, trial, *(Case(seed, kind, number, step) for number in numbers))

        steps = max(5, cases // 5_000)
        for step in range(steps):
            await cleared(daemon, step)
            async with trio.open_nursery() as nursery:
                for kind, (_, each, share) in SHARES.items():
                    first, last = (round(cases * share * at / steps) for at in (step, step + 1))
                    for number in range(first, last, each):
                        nursery.start_soon(one, step, kind, range(number, min(number + each, last)))
            first, last = (round(cases * 0.3 * at / steps / len(texts)) for at in (step, step + 1))
            decide(
                trial, tmp_path / "file", (Case(seed, kind, at, step) for kind in texts for at in range(first, last))
            )
            assert not trial.wrong, "\n\n".join(trial.wrong[:3])
            if step == steps // 10:
                await cleared(daemon, step)
                before, used = await daemon.settled(), memory()
        await cleared(daemon, steps)

        def no_more() -> bool:  # except for SQLite's log, which the store's readers open on demand
            now = daemon.census()
            fewer = now.tasks <= before.tasks and now.descriptors <= before.descriptors + 3
            return fewer and not now.topics

        await eventually(no_more)
        print(f"{cases} cases of seed {seed}: {(memory() - used) >> 10} KiB more, {dict(trial.answers)}")
        assert memory() - used < GROWTH_MOST
        assert all(trial.answers[one] for one in TAKEN)


def memory() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_no_input_makes_the_daemon_fail(tmp_path: Path) -> None:
    await fuzz(tmp_path, 800, "1")


@pytest.mark.torture
@pytest.mark.parametrize("part", range(10), ids="part{}".format)
async def test_a_million_inputs_fail_nothing(tmp_path: Path, seed: int, part: int) -> None:
    await fuzz(tmp_path, 100_000, f"{seed}.{part}")
