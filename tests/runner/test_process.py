"""A child process: its start, its output, its exit status, and the end of its process tree."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
import trio
import trio.testing
from progressd.detect.detector import STDERR, STDOUT
from progressd.detect.plan import Plan
from progressd.detect.preset import Adaptation
from progressd.producers.ndjson import LineTooLong, NumberedLine
from progressd.runner.process import MAX_LINE, MAX_PIPE_BYTES, QUIET, ChildProcess, ResourceLimits
from support.pid_namespace import as_init
from support.waiting import PATIENCE, alive, eventually, jumping, settled

GRACE = 0.2  # seconds from SIGTERM to SIGKILL
LIMITS = ResourceLimits(memory=1 << 30, cpu=60, file=1 << 30, open_files=1024)


def marked() -> dict[str, str]:
    """Return an environment with unique marks, so that concurrent tests do not end each other's processes."""
    return {"PATH": os.environ["PATH"], "PROGRESSD_RUNNER": "a-test", "PROGRESSD_JOB_ID": str(uuid4())}


class Lines:
    """Collect the lines of one output."""

    def __init__(self) -> None:
        self.lines: list[NumberedLine] = []
        self.begun = trio.Event()

    async def __call__(self, lines: Sequence[NumberedLine]) -> None:
        self.lines += lines
        if lines:
            self.begun.set()
        await trio.lowlevel.checkpoint()

    @property
    def texts(self) -> list[bytes]:
        return [line for _, line in self.lines if isinstance(line, bytes)]


class Chunks:
    """Collect both outputs, as bytes."""

    def __init__(self) -> None:
        self.outputs = {STDOUT: b"", STDERR: b""}
        self.pauses = list[int]()

    async def __call__(self, stream: int, chunk: bytes) -> None:
        self.outputs[stream] += chunk
        if not chunk:
            self.pauses.append(stream)
        await trio.lowlevel.checkpoint()


def python(program: str) -> list[str]:
    return [sys.executable, "-uc", program]


def shell(program: str) -> list[str]:
    return ["sh", "-c", program]


async def start(
    command: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None, grace: float = GRACE
) -> ChildProcess:
    environment = environment or {"PATH": os.environ["PATH"]}
    return await ChildProcess.start(Plan(tuple(command)), cwd or Path("/"), environment, grace, LIMITS)


async def run(command: Sequence[str]) -> tuple[int, Lines, Chunks, ChildProcess]:
    """Run a command; return its exit status, its lines on stdout, its outputs, and the child."""
    out, chunks = Lines(), Chunks()
    with trio.fail_after(PATIENCE):
        child = await start(command)
        return await child.run(out, chunks), out, chunks, child


async def run_and_cancel(child: ChildProcess) -> tuple[Lines, float]:
    """Cancel a child after its first line; return its output, and the seconds until its end."""
    out = Lines()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.run, out, Chunks())
            await out.begun.wait()
            started = trio.current_time()
            nursery.cancel_scope.cancel()
    return out, trio.current_time() - started


@pytest.mark.parametrize("stream", [STDOUT, STDERR])
async def test_frames_that_a_plan_adds_are_searched_but_not_kept(stream: int) -> None:
    command = shell(f"printf 'a\\n 1%%\\r 2%%\\r100%%\\nb' >&{stream}")
    plan = Plan(tuple(command), adaptation=Adaptation(hide=r"^\s*\d+%$"))
    kept, chunks = {STDOUT: b"", STDERR: b""}, Chunks()

    def keep(of: int, text: bytes) -> None:
        kept[of] += text

    with trio.fail_after(PATIENCE):
        child = await ChildProcess.start(plan, Path("/"), {"PATH": os.environ["PATH"]}, GRACE, LIMITS)
        await child.run(Lines(), chunks, keep)
    assert chunks.outputs == {STDOUT: b"", STDERR: b"", stream: b"a\n 1%\r 2%\r100%\nb"}
    assert kept == {STDOUT: b"", STDERR: b"", stream: b"a\nb"}
    assert child.stderr == kept[STDERR]


async def test_stdout_is_split_into_lines() -> None:
    status, out, chunks, child = await run(shell("echo one; echo; echo complaint >&2; printf three"))
    assert status == 0
    assert out.lines == [(1, b"one"), (3, b"three")]
    assert chunks.outputs == {STDOUT: b"one\n\nthree", STDERR: b"complaint\n"}
    assert sorted(chunks.pauses) == [STDOUT, STDERR]
    assert child.stderr == b"complaint\n"


async def test_a_carriage_return_ends_a_line() -> None:
    _, out, chunks, child = await run(shell(r"printf '10%%\r20%%\r\n30%%'; printf ' 1/2\r 2/2\n' >&2"))
    assert out.texts == [b"10%", b"20%", b"30%"]
    assert chunks.outputs[STDERR] == b" 1/2\r 2/2\n"
    assert child.stderr == b" 1/2\n 2/2\n"


async def test_a_silent_output_is_reported_once(tmp_path: Path, slow_clock: trio.testing.MockClock) -> None:
    chunks = Chunks()
    child = await start(shell(f"printf 1/2; exec 2>&-; until [ -e {tmp_path}/go ]; do sleep 0.01; done; printf 2/2"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run, Lines(), chunks)
        await eventually(lambda: chunks.outputs[STDOUT])
        await jumping(slow_clock, QUIET, lambda: STDOUT in chunks.pauses)
        slow_clock.jump(10 * QUIET)
        await settled()
        (tmp_path / "go").touch()
    assert chunks.outputs[STDOUT] == b"1/22/2"
    assert chunks.pauses.count(STDOUT) == 2  # the second is the end


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", -signal.SIGTERM)])
async def test_the_exit_status_is_returned(command: str, status: int) -> None:
    assert (await run(shell(command)))[0] == status


@pytest.mark.parametrize(
    "name", ["/no/such/program", "no-such-program", "./no-such-program", "./program", "./directory"]
)
async def test_a_missing_program_raises(name: str, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("exit")
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileNotFoundError, match="not installed or not executable: '" + re.escape(name)):
        await start([name], tmp_path)


@pytest.mark.parametrize("content", [b"", b"echo read by a shell\n", b"\xfe\xed\xfa\xce of another system"])
async def test_a_shell_never_runs_an_invalid_program(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(content)
    (tmp_path / "program").chmod(0o755)
    with pytest.raises(OSError, match=r"begins with #!: '\./program'"):
        await start(["./program"], tmp_path)


def ours() -> set[str]:
    """Return the children of this process that were not reaped."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


async def test_a_cancelled_start_leaves_no_process() -> None:
    before = ours()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, ["sleep", "1000"])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert ours() <= before


async def test_environment_and_arguments_are_passed_unchanged() -> None:
    out, environment = Lines(), {"LC_CTYPE": "de_DE", "A": "\udcff"}
    child = await start(
        ["/bin/sh", "-c", "/usr/bin/tr '\\0' '\\n' < /proc/$$/environ; echo $1", "", "\udcfe"], None, environment
    )
    with trio.fail_after(PATIENCE):
        assert await child.run(out, Chunks()) == 0
    assert sorted(out.texts) == sorted([*(os.fsencode(f"{k}={v}") for k, v in environment.items()), b"\xfe"])


async def test_a_program_starts_in_a_clean_state(tmp_path: Path) -> None:
    """It has its own session and directory, no input, no descriptors and no ignored signals."""
    program = (
        "import os, sys; print(os.getpid() == os.getsid(0) == os.getpgid(0)); print(os.getcwd())\n"
        "print(repr(sys.stdin.read())); print(os.listdir('/proc/self/fd'))"
    )
    async with await trio.open_file("/dev/null") as ours:
        os.set_inheritable(ours.fileno(), True)
        out = Lines()
        child = await start(python(program), tmp_path)
        with trio.fail_after(PATIENCE):
            assert await child.run(out, Chunks()) == 0
    fds = b"['0', '1', '2', '3']"  # 3 is the directory itself
    assert out.texts == [b"True", str(tmp_path).encode(), b"''", fds]
    _, out, _, _ = await run(["grep", "SigIgn", "/proc/self/status"])
    assert out.texts == [b"SigIgn:\t0000000000000000"]


async def test_lines_may_have_a_megabyte() -> None:
    program = f"import sys; sys.stdout.write('x' * {MAX_LINE} + '\\n' + 'y' * {MAX_LINE + 1} + '\\nlast\\n')"
    _, out, _, _ = await run(python(program))
    [(_, whole), (number, refused), last] = out.lines
    assert whole == b"x" * MAX_LINE
    assert number == 2
    assert isinstance(refused, LineTooLong)
    assert last == (3, b"last")


async def test_a_cancelled_child_may_clean_up(tmp_path: Path) -> None:
    program = f"trap 'touch {tmp_path}/cleaned; exit' TERM; echo ready; while :; do sleep 0.01; done"
    await run_and_cancel(await start(shell(program), grace=2 * PATIENCE))
    assert (tmp_path / "cleaned").exists()


async def test_a_stubborn_child_and_grandchild_are_killed() -> None:
    program = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = os.fork()\n"
        "if grandchild: print(os.getpid(), grandchild)\n"
        "while True: time.sleep(60)\n"
    )
    out, took = await run_and_cancel(await start(python(program)))
    pids = [int(pid) for pid in out.texts[0].split()]
    assert len(pids) == 2
    assert not any(map(alive, pids))
    assert took >= GRACE


LEAVING = {  # ways to leave the process group
    "timeout": "timeout 1000 {} &",
    "setsid": "setsid {} &",
    "clean": "env -i setsid {} &",
    "orphan": "(setsid {} &);",
}


def leaving(way: str, there: Path) -> str:
    """Return a script that waits until its child has left the group and written its id."""
    stays = f"sh -c 'echo $$; : > {there}; while :; do sleep 60; done'"
    return f"{LEAVING[way].format(stays)} until [ -e {there} ]; do sleep 0.01; done;"


@pytest.mark.parametrize("way", LEAVING)
async def test_a_cancel_ends_processes_outside_the_group(way: str, tmp_path: Path) -> None:
    program = f"{leaving(way, tmp_path / 'there')} sleep 1000; :"
    out, _ = await run_and_cancel(await start(shell(program), None, marked()))
    assert not alive(int(out.texts[0]))


async def test_an_exit_ends_processes_outside_the_group(tmp_path: Path) -> None:
    ways = [way for way in LEAVING if way != "clean"]  # without a mark it cannot be found
    out = Lines()
    programs = " ".join(leaving(way, tmp_path / way) for way in ways)
    child = await start(shell(f"{programs} exit 4"), None, marked())
    with trio.fail_after(PATIENCE):
        assert await child.run(out, Chunks()) == 4
    assert len(out.texts) == len(ways)
    assert not any(alive(int(text)) for text in out.texts)


NEXT_ID = Path("/proc/sys/kernel/ns_last_pid")
REUSED = """
import os, subprocess, trio, trio.testing
from pathlib import Path
from progressd.detect.plan import Plan
from progressd.runner.process import ChildProcess, ResourceLimits

foreign = None

async def on_lines(lines):
    global foreign
    if lines:
        while (path := Path(f"/proc/{child.pid}/stat")).exists() and ") Z " not in path.read_text():
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked()
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(child.pid - 1))
        foreign = subprocess.Popen(["sleep", "1000"], start_new_session=True)

LIMITS = ResourceLimits(memory=1 << 30, cpu=60, file=1 << 30, open_files=1024)

async def nothing(*given): pass

async def main():
    global child
    child = await ChildProcess.start(Plan(("echo", "last words")), Path("/"), {"PATH": os.environ["PATH"]}, 0.1, LIMITS)
    assert await child.run(on_lines, nothing) == 0
    print("ended" if foreign.poll() is not None else "runs")
    foreign.kill()
    foreign.wait()

trio.run(main)
"""


@pytest.mark.skipif(not NEXT_ID.exists(), reason="the kernel does not let a process choose the next id")
def test_a_reused_process_id_is_left_alone() -> None:
    done = subprocess.run(
        as_init(sys.executable, "-c", REUSED), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout, done.stderr) == ("runs\n", "")


HOLDING = {  # grandchildren that hold the output open
    "silent and slow": "(while :; do echo; sleep 0.05; done) & sleep 1000 &",
    "flooding": "(while kill -0 $$; do :; done; exec yes) 2>/dev/null &",  # it all comes after the exit
}


@pytest.mark.parametrize("grandchild", HOLDING.values(), ids=HOLDING.keys())
async def test_a_grandchild_that_holds_the_output_is_killed(grandchild: str) -> None:
    status, out, _, _ = await run(shell(f"{grandchild} echo $!; exit 4"))
    assert status == 4
    assert not alive(next(int(text) for text in out.texts if text.strip().isdigit()))
    assert len(out.lines) < MAX_PIPE_BYTES


async def test_an_error_of_the_reader_ends_the_child() -> None:
    out = Lines()

    async def on_line(lines: Sequence[NumberedLine]) -> None:
        await out(lines)
        raise ValueError("broken")

    child = await start(shell("echo $$; sleep 1000"))
    with trio.fail_after(PATIENCE), pytest.raises(ExceptionGroup) as raised:
        await child.run(on_line, Chunks())
    assert raised.group_contains(ValueError, match="broken")
    assert not alive(int(out.texts[0]))
