"""Real programs under `progressd run`, beside a run without it: the table in docs/commands.md.

`make tools` installs the programs, runs them and writes the table. A program that is not installed is skipped.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from progressd.detect.detector import DESCRIPTOR, STDERR, STDOUT, Detector
from progressd.detect.plan import Plan, plan
from progressd.detect.preset_loader import Presets
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE, until
from tools.programs import ENVIRONMENT, PROGRAMS, Program, slow_server

pytestmark = pytest.mark.tools

DOCS = Path(__file__).parents[2] / "docs" / "commands.md"
TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
BEGIN, END = "<!-- make tools -->\n", "<!-- end -->\n"
JAPANESE = {"yes, added": "○ 追加", "yes": "○", "no": "×", "on a terminal": "ターミナル", "estimate": "推定"}
STREAMS = {"O": STDOUT, "E": STDERR, "P": DESCRIPTOR}
QUIET = 0.2  # seconds of silence after which a frame is complete
MAX_AGE = 0.25  # seconds
LIMIT = 120.0  # seconds of one run
WORD = re.compile(rb"\b[A-Za-z_]{4,}\b")
ESCAPE = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


class Seen(NamedTuple):
    """What a run has shown. `age`: the longest time from the end of a frame to its progress."""

    status: int
    outputs: Mapping[int, bytes]
    percents: Sequence[float]
    source: str
    rate: bool
    eta: bool
    age: float


class Row(NamedTuple):
    """One row of the table."""

    name: str
    plain: str
    flagged: str
    rate: str
    eta: str
    unchanged: str


ROWS = dict[str, Row]()


def environment(directory: Path) -> dict[str, str]:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **ENVIRONMENT, "PATH": tools, "HOME": str(directory), "GNUPGHOME": str(directory)}


class Streams:
    """The ends of pipes, or of a pseudo-terminal, that a program writes to."""

    def __init__(self, terminal: bool, descriptor: bool) -> None:
        self.reading = dict[int, int]()  # the number of the stream by the descriptor to read
        self._theirs = list[int]()
        if terminal:
            ours, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
            self.reading[ours] = STDOUT
            self.stdout = self.stderr = theirs
            self._theirs = [theirs]
        else:
            for stream in (STDOUT, STDERR):
                ours, theirs = os.pipe()
                self.reading[ours] = stream
                self._theirs.append(theirs)
            self.stdout, self.stderr = self._theirs
        self.passed = -1
        if descriptor:
            ours, self.passed = os.pipe()
            self.reading[ours] = DESCRIPTOR
            self._theirs.append(self.passed)
        self.terminal = terminal

    def start(self, command: Sequence[str], directory: Path, added: Mapping[str, str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command,
            stdin=self.stdout if self.terminal else subprocess.DEVNULL,
            stdout=self.stdout,
            stderr=self.stderr,
            cwd=directory,
            env={**environment(directory), **added},
            pass_fds=[] if self.passed < 0 else [self.passed],
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if self.terminal else None,
        )
        for descriptor in set(self._theirs):
            os.close(descriptor)
        return process

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yield the output as it arrives; an empty chunk after QUIET seconds of silence of a stream, and at its end."""
        heard = dict.fromkeys(self.reading, (time.monotonic(), True))
        until_ = time.monotonic() + LIMIT
        while heard and time.monotonic() < until_:
            ready, _, _ = select.select(list(heard), [], [], 0.02)
            for descriptor, (at, told) in list(heard.items()):
                if descriptor not in ready:
                    if not told and time.monotonic() - at >= QUIET:
                        heard[descriptor] = (at, True)
                        yield self.reading[descriptor], b""
                    continue
                chunk = b""
                with contextlib.suppress(OSError):  # the terminal was closed
                    chunk = os.read(descriptor, 65536)
                heard[descriptor] = (time.monotonic(), False)
                yield self.reading[descriptor], chunk
                if not chunk:
                    os.close(descriptor)
                    del heard[descriptor]


def observed(planned: Plan, directory: Path, terminal: bool) -> Seen:
    """Run the command of a plan, and find the progress in its output."""
    streams = Streams(terminal, planned.progress_fd)
    command = planned.arguments(streams.passed)
    process = streams.start(command, directory, planned.environment)
    try:
        detector, outputs = Detector(planned), {STDOUT: b"", STDERR: b""}
        percents, rate, eta, age = list[float](), False, False, 0.0
        written = dict.fromkeys((STDOUT, STDERR, DESCRIPTOR), time.monotonic())
        for stream, chunk in streams.chunks():
            if chunk:
                written[stream] = time.monotonic()
                outputs[stream] = outputs.get(stream, b"") + chunk
            found = detector.feed(stream, chunk) if chunk else detector.quiet(stream)
            if found and not chunk:
                age = max(age, time.monotonic() - written[stream])
            percents += [one.percent for one in found if one.percent is not None]
            rate |= detector.found.rate is not None
            eta |= detector.found.eta is not None
        return Seen(process.wait(PATIENCE), outputs, percents, detector.source, rate, eta, age)
    finally:
        killed(process)


def replayed(program: Program) -> Seen:
    """Find the progress in what a program has written in an earlier run."""
    planned = plan(program.words, Presets())
    detector, data, at = Detector(planned), (TRANSCRIPTS / f"{program.transcript}.typescript").read_bytes(), 0
    percents, rate, eta = list[float](), False, False
    for line in (TRANSCRIPTS / f"{program.transcript}.timing").read_text().splitlines():
        stream, _, size = line.split()
        found = detector.feed(STREAMS[stream], data[at : at + int(size)])
        at += int(size)
        percents += [one.percent for one in found if one.percent is not None]
        rate |= detector.found.rate is not None
        eta |= detector.found.eta is not None
    return Seen(0, {}, percents, detector.source, rate, eta, 0.0)


def killed(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever a run has left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)


class Watcher(threading.Thread):
    """Keep the percentages of all jobs, as a watcher receives them."""

    def __init__(self, daemon: ServedDaemon) -> None:
        super().__init__(daemon=True)
        self.percents = dict[str, list[int]]()
        self.ended = set[str]()
        self._daemon = daemon
        self.ready = threading.Event()
        self.start()
        assert self.ready.wait(PATIENCE)

    def run(self) -> None:
        url = f"{self._daemon.url}/api/events"
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("GET", url, timeout=None, trust_env=False) as response,
        ):
            self.ready.set()
            for line in response.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                job, data = message.get("job_id"), message.get("data", {})
                if message.get("type") == "progress":
                    self.percents.setdefault(job, []).append(data["percent"])
                elif message.get("type") in ("completed", "error"):
                    self.ended.add(job)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    with served_daemon(tmp_path_factory.mktemp("served") / "state") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def watcher(daemon: ServedDaemon) -> Watcher:
    return Watcher(daemon)


def under_run(
    command: Sequence[str], directory: Path, daemon: ServedDaemon, watcher: Watcher, terminal: bool = False
) -> Seen:
    """Run a command under `progressd run`."""
    streams = Streams(terminal, False)
    run = [sys.executable, "-m", "progressd", "run", "-v", "--url", daemon.url, "--", *command]
    process = streams.start(run, directory, {})
    try:
        outputs = {STDOUT: b"", STDERR: b""}
        for stream, chunk in streams.chunks():
            outputs[stream] += chunk
        status = process.wait(PATIENCE)
    finally:
        killed(process)
    where = STDOUT if terminal else STDERR
    said = re.search(rb"progressd: progress from: (.*?)\r?\n\Z", outputs[where])
    assert said is not None, outputs[where]
    outputs[where] = outputs[where][: said.start()]
    [job] = daemon.request("GET", "/api/jobs?limit=1").json()["jobs"]
    until(lambda: job["id"] in watcher.ended)
    source = said[1].decode()
    found = "" if source == "nowhere" else source
    return Seen(status, outputs, watcher.percents.get(job["id"], []), found, False, False, 0.0)


def same(one: bytes, other: bytes) -> bool:
    """Return whether two outputs are the same, except for numbers, bars, units and the number of redraws."""
    return one == other or _words(one) == _words(other)


def _words(text: bytes) -> set[tuple[bytes, ...]]:
    """Return the words of each line or redraw, except for yt-dlp's unknown times and rates."""
    text = text.replace(b"Unknown", b"")
    return {tuple(WORD.findall(frame)) for frame in re.split(rb"[\r\n]+", ESCAPE.sub(b"", text))} | {()}


def installed(program: Program) -> bool:
    return shutil.which(program.words[0], path=environment(Path("/"))["PATH"]) is not None


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_progress_is_found_and_nothing_else_changes(
    program: Program, tmp_path: Path, daemon: ServedDaemon, watcher: Watcher
) -> None:
    if program.transcript:
        seen = replayed(program)
        added = plan(program.words, Presets()).added
        assert seen.percents, program.transcript
        _check_order(seen.percents)
        note(program, seen, found(seen.source, added) + " ¹", "", "¹")
        return
    if not installed(program):
        pytest.skip(f"{program.words[0]} is not installed")
    base = tmp_path / "base"
    base.mkdir()
    if program.prepare is not None:
        program.prepare(base)
    with slow_server(base) as url:

        def fresh(command: str) -> tuple[list[str], Path]:
            work = tmp_path / "work"
            shutil.rmtree(work, ignore_errors=True)
            subprocess.run(["cp", "-a", "--sparse=always", base, work], check=True)
            text = command.replace("{url}", url).replace("{dir}", str(work)).replace("{limited}", "-L 10M")
            return text.split(), work

        words, work = fresh(program.command)
        planned = plan(words, Presets())
        alone = observed(Plan(tuple(words), enabled=False), work, False)
        beside = under_run(*fresh(program.command), daemon, watcher)
        unchanged = _unchanged(program, alone, beside)
        detected = observed(plan(fresh(program.command)[0], Presets()), work, False)
        terminal = False
        if not beside.source and not program.unseen:
            in_terminal = under_run(*fresh(program.command), daemon, watcher, terminal=True)
            assert in_terminal.source or program.flagged, in_terminal.outputs
            assert in_terminal.status == alone.status
            if in_terminal.source:
                terminal, beside = True, in_terminal
                detected = observed(plan(fresh(program.command)[0], Presets(), terminal=True), work, True)
        flagged = None
        if program.flagged:
            flagged = under_run(*fresh(program.flagged), daemon, watcher)
            bare = observed(Plan(tuple(fresh(program.flagged)[0]), enabled=False), work, False)
            unchanged &= _unchanged(program._replace(varies="always") if program.varies else program, bare, flagged)
            assert flagged.source
            _check_order(flagged.percents)
            if not (detected.rate or detected.eta):
                with_flag = observed(plan(fresh(program.flagged)[0], Presets()), work, False)
                detected = with_flag._replace(age=max(detected.age, with_flag.age))
    _check_order(beside.percents)
    assert unchanged
    assert detected.age <= MAX_AGE + QUIET  # generous: the machine may be busy
    plain = found(beside.source, planned.added, terminal) if beside.source else "no"
    note(program, detected, plain, flag_of(program) if flagged else "", "yes")


def _check_order(percents: Sequence[float]) -> None:
    assert list(percents) == sorted(percents), percents


def _unchanged(program: Program, alone: Seen, beside: Seen) -> bool:
    assert beside.status == alone.status, (alone, beside)
    for stream in (STDOUT, STDERR):
        if program.varies != "always" and not same(alone.outputs[stream], beside.outputs[stream]):
            pytest.fail(f"{alone.outputs[stream]!r}\n{beside.outputs[stream]!r}")
    return True


def found(source: str, added: str, terminal: bool = False) -> str:
    if "estimate" in source:
        return "estimate"
    if added:
        return "yes, added"
    return "on a terminal" if terminal else "yes"


def flag_of(program: Program) -> str:
    added = [word for word in program.flagged.split() if word not in program.words]
    return "`" + " ".join(added).replace("|", "\\|") + "`"


def note(program: Program, seen: Seen, plain: str, flagged: str, unchanged: str) -> None:
    answer = {True: "yes", False: ""}
    ROWS[program.name] = Row(program.name, plain, flagged, answer[seen.rate], answer[seen.eta], unchanged)


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    """Write the rows of the programs that were run into the table."""
    yield
    table = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[2:]}
    lines |= {name: f"| {' | '.join(row)} |" for name, row in ROWS.items()}
    rows = "".join(f"{lines[program.name]}\n" for program in PROGRAMS if program.name in lines)
    write_rows(DOCS, rows)
    for english, japanese in JAPANESE.items():
        rows = rows.replace(f"| {english} ", f"| {japanese} ")
    write_rows(DOCS.parent / "ja" / DOCS.name, rows)


def write_rows(page: Path, rows: str) -> None:
    """Replace the rows of the table. Its heading stays."""
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    heading = "".join(table.splitlines(keepends=True)[:2])
    page.write_text(f"{before}{BEGIN}{heading}{rows}{END}{after}")
