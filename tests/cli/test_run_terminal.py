"""`progressd run` in a terminal: the user sees what they would have seen without it."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.cli import PROGRESSD
from support.serving import PATIENCE, ServedDaemon
from support.terminal import Terminal, in_terminal
from support.waiting import alive, until

NOBODY = "http://127.0.0.1:1"
TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
RUN = f"{sys.executable} -m progressd run --url"


def run(url: str, *arguments: str) -> list[str]:
    return [*PROGRESSD, "run", "--url", url, *arguments]


@contextlib.contextmanager
def shell() -> Iterator[Terminal]:
    """Run an interactive bash."""
    with in_terminal(["bash", "--norc", "--noediting", "-i"]) as (_, terminal):
        terminal.read(b"% $")
        yield terminal


def shown(command: Sequence[str], keys: bytes = b"") -> tuple[bytes, int]:
    """Return what a command shows in a terminal, and its exit status."""
    with in_terminal(command) as (process, terminal):
        terminal.type(keys)
        output = terminal.read_all()
        return output, process.wait(PATIENCE)


FRAMES = r"for i in 1 2 3; do printf '\r%s%%' $i; sleep 0.05; done; printf '\r\033[K'; exit 3"


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", FRAMES],
        ["sh", "-c", "tty >/dev/null && stty size && stty -a"],
        ["sh", "-c", "ls --color=auto -C / ; echo error >&2; printf 'no newline'"],
        ["sh", "-c", "printf '\\033]9;4;1;42\\033\\\\ caf\\303\\251 \\377\\000 \\r\\n\\n'"],
        [sys.executable, "-c", "import os; print([os.isatty(n) for n in range(3)], os.tcgetpgrp(0) == os.getpgrp())"],
        ["sh", "-c", "exit 7"],
        ["dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "count=3"],
        ["git", "--no-pager", "-c", "color.ui=auto", "log", "--oneline", "-3"],
        ["bash", "--norc", "-ic", "set -m; sleep 0.01 & wait; jobs; echo $-"],
    ],
    ids=lambda command: " ".join(command)[:30],
)
def test_a_terminal_shows_what_it_shows_without_us(command: list[str]) -> None:
    written, status = shown(command)
    with_us, status_with_us = shown(run(NOBODY, "--", *command))
    complaint = b"progressd: no daemon answers at http://127.0.0.1:1; start one with: progressd serve"
    varying = re.compile(rb"[\d.e-]+ s, [\d.]+ .B/s|\[1\] \d+|" + re.escape(complaint) + rb"\r?\r\n")
    assert varying.sub(b"", with_us) == varying.sub(b"", written)
    assert status_with_us == status


@pytest.mark.parametrize("options", ["-a", "-av"])
@pytest.mark.parametrize("terminal", [True, False])
def test_rsync_writes_what_it_writes_without_us(options: str, terminal: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"file{number}").write_bytes(bytes(300_000 * number))
    varying = re.compile(rb"copy\d+|[\d,.]+ bytes/sec|progressd: .*")

    def written(*before: str) -> bytes:
        command = [*before, "rsync", options, f"{source}/", str(tmp_path / f"copy{len(before)}")]
        if terminal:
            output = shown(command)[0]
        else:
            output = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True).stdout
        return varying.sub(b"", output).strip()

    assert written(*run(NOBODY, "--")) == written()


REPLAY = """
import os, random, sys
for name in sys.argv[2:]:
    cuts, text = random.Random(name), open(name, "rb").read()
    while text:
        size = cuts.randint(1, 400)
        os.write(cuts.choice((1, 2)) if sys.argv[1] == "both" else 1, text[:size])
        text = text[size:]
"""
TOOLS = ["7z", "cargo-pty", "curl", "git", "pytest", "rsync", "tqdm", "yt-dlp"]


def test_transcripts_are_shown_unchanged() -> None:
    transcripts = [min(TRANSCRIPTS.glob(f"{tool}*.typescript")) for tool in TOOLS]
    command = [sys.executable, "-c", REPLAY, "both", *map(str, transcripts)]
    with_us, status = shown(run(NOBODY, "--", *command))
    assert (with_us.partition(b"progressd: ")[0], status) == (shown(command)[0], 0)
    command[3] = "out"
    piped = subprocess.run(run(NOBODY, "--", *command), capture_output=True, timeout=PATIENCE, check=True)
    assert piped.stdout == b"".join(transcript.read_bytes() for transcript in transcripts)


def test_keys_reach_the_command() -> None:
    with in_terminal(run(NOBODY, "--", "sh", "-c", "cat | tr a-z A-Z")) as (process, terminal):
        terminal.type(b"one\x7f\x7fff\n")
        terminal.read(b"OFF\r\n")
        terminal.type(b"\x04")
        assert process.wait(PATIENCE) == 0


def test_streams_that_are_no_terminal_are_kept_apart() -> None:
    reading, writing = os.pipe()
    command = run(NOBODY, "--", "sh", "-c", "test -t 1 || echo out; test -t 2 && echo err >&2")
    with in_terminal(command, stdout=writing) as (process, terminal):
        os.close(writing)
        terminal.read(b"err\r\n")
        assert process.wait(PATIENCE) == 0
        with open(reading, "rb") as output:
            assert output.read() == b"out\n"


def test_a_command_in_a_pipeline_keeps_the_terminal() -> None:
    with shell() as terminal:
        terminal.type(f"echo given | {RUN} {NOBODY} -- sh -c 'cat; read x </dev/tty; echo got $x' | cat\n".encode())
        terminal.read(b"given\r\n")
        terminal.type(b"this\n")
        terminal.read(b"got this\r\n")


def test_ctrl_z_stops_and_fg_continues() -> None:
    with shell() as terminal:
        terminal.type(f"{RUN} {NOBODY} -- sh -c 'echo be\"\"gun; cat'\n".encode())
        terminal.read(b"begun\r\n")
        terminal.type(b"typed\n")
        terminal.read(b"typed\r\ntyped\r\n")  # the second line is from `cat`, so it runs
        terminal.type(b"\x1a")
        terminal.read(rb"Stopped.*\n% $")
        before = terminal.settings()
        terminal.type(b"fg\n")
        terminal.read(b"cat'\r\n")
        terminal.type(b"again\n")
        terminal.read(b"again\r\nagain\r\n")
        terminal.type(b"\x04")
        terminal.read(b"% $")
        terminal.type(b"echo status $?\n")
        terminal.read(b"status 0\r\n")
        assert terminal.settings() == before


SHELLS = {
    "dash": ["dash", "-i"],
    "zsh": ["env", "PS1=%% ", "zsh", "-f", "-i", "+Z"],
    "fish": ["fish", "--no-config", "-i", "-C", 'function fish_prompt; echo -n "% "; end'],
}


@pytest.mark.parametrize("name", SHELLS)
def test_the_job_control_of_other_shells_works(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    with in_terminal(SHELLS[name]) as (_, terminal):
        terminal.read(b"% ")
        terminal.type(f"{RUN} {NOBODY} -- sh -c 'echo be\"\"gun; cat'\n".encode())
        terminal.read(b"begun\r\n")
        terminal.type(b"typed\n")
        terminal.read(b"typed\r\ntyped\r\n")  # the second line is from `cat`, so it runs
        terminal.type(b"\x1a")
        terminal.read(rb"(?i)(?:stopped|suspended)")
        terminal.type(b"fg\n")
        terminal.type(b"again\n")
        terminal.read(b"again\r\nagain\r\n")
        terminal.type(b"\x03")
        terminal.read(b"% ")
        terminal.type(b"echo en''ded\n")
        terminal.read(b"ended\r\n")


def test_a_background_job_stops_when_it_reads() -> None:
    with shell() as terminal:
        terminal.type(f"{RUN} {NOBODY} -- sh -c 'cat; echo en\"\"ded' &\n".encode())
        terminal.read(b"% ")
        until(lambda: b"Stopped" in _after(terminal, b"\n"))
        terminal.type(b"fg\n")
        terminal.read(b"ded' *\r\n")
        terminal.type(b"typed\n")
        terminal.read(b"typed\r\ntyped\r\n")
        terminal.type(b"\x04")
        terminal.read(b"ended\r\n")


def _after(terminal: Terminal, keys: bytes) -> bytes:
    terminal.type(keys)
    return terminal.read(b"% $")


def test_bg_continues_a_stopped_command(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)

    def written() -> bool:
        with contextlib.suppress(OSError):  # nobody reads yet
            descriptor = os.open(go, os.O_WRONLY | os.O_NONBLOCK)
            with open(descriptor, "w") as file:
                file.write("go\n")
            return True
        return False

    with shell() as terminal:
        # A shell that just starts a program, with vfork, does not stop. So this one starts none.
        terminal.type(f'{RUN} {NOBODY} -- sh -c \'echo be""gun; read line < {go}; echo en""ded\'\n'.encode())
        terminal.read(b"begun\r\n")
        terminal.type(b"\x1a")
        terminal.read(rb"Stopped.*\n% $")
        terminal.type(b"bg\n")
        until(written)
        terminal.read(b"ended\r\n")


@pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_a_typed_signal_ends_the_command(key: bytes, number: int, daemon: ServedDaemon) -> None:
    with shell() as terminal:
        terminal.type(f"{RUN} {daemon.url} -- sh -c 'echo be\"\"gun; exec sleep 1000'\n".encode())
        terminal.read(b"begun\r\n")
        terminal.type(key)
        terminal.read(b"% $")
        terminal.type(b"echo status $?\n")
        terminal.read(b"status %d\r\n" % (128 + number))


def test_the_size_of_the_terminal_is_passed_on() -> None:
    script = "trap 'stty size' WINCH; trap exit INT; echo be\"\"gun; while :; do sleep 0.05; done"
    with shell() as terminal:
        terminal.type(
            f"{RUN} {NOBODY} -- bash --norc -c '{script.replace(chr(39), chr(34))}'\n".encode().replace(
                b'be""gun', b"be'\"\"'gun"
            )
        )
        terminal.read(b"begun\r\n")
        terminal.resize(50, 90)
        terminal.read(b"50 90\r\n")
        terminal.type(b"\x03")
        terminal.read(b"% $")


@pytest.mark.parametrize("kills", ["command", "run"])
def test_the_terminal_is_restored(kills: str) -> None:
    with shell() as terminal:
        before = terminal.settings()
        terminal.type(f"{RUN} {NOBODY} -- sh -c 'echo $$ $PPID be\"\"gun; exec sleep 1000'\n".encode())
        pid, leader = map(int, re.findall(rb"(\d+) (\d+) begun", terminal.read(rb"begun\r\n"))[0])
        assert terminal.settings() != before
        parent = int(Path(f"/proc/{leader}/stat").read_text().split()[3])
        os.kill(pid if kills == "command" else parent, signal.SIGKILL if kills == "command" else signal.SIGTERM)
        terminal.read(b"% $")
        assert terminal.settings() == before
        assert not alive(pid)


def test_a_command_ends_with_a_killed_run() -> None:
    with shell() as terminal:
        terminal.type(f"{RUN} {NOBODY} -- sh -c 'echo $$ $PPID be\"\"gun; exec sleep 1000'\n".encode())
        pid, leader = map(int, re.findall(rb"(\d+) (\d+) begun", terminal.read(rb"begun\r\n"))[0])
        os.kill(int(Path(f"/proc/{leader}/stat").read_text().split()[3]), signal.SIGKILL)
        until(lambda: not alive(pid) and not alive(leader))


def test_a_process_that_the_command_leaves_runs_on(tmp_path: Path) -> None:
    stays = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; touch {tmp_path}/done"
    script = f"({stays}) >/dev/null 2>&1 </dev/null & echo left"
    assert shown(run(NOBODY, "--", "sh", "-c", script))[0].startswith(b"left\r\n")
    (tmp_path / "go").touch()
    until((tmp_path / "done").exists)


def test_the_shell_gets_what_the_command_has_not_read(tmp_path: Path) -> None:
    with shell() as terminal:
        waits = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"
        terminal.type(f"{RUN} {NOBODY} -- sh -c 'echo be\"\"gun; read x; {waits}'\n".encode())
        terminal.read(b"begun\r\n")
        terminal.type(b"line\necho ty''ped\n")
        (tmp_path / "go").touch()
        if os.geteuid() == 0:  # other users only if the kernel has dev.tty.legacy_tiocsti
            terminal.read(b"typed\r\n")


def test_a_cancellation_ends_a_command_with_a_terminal(daemon: ServedDaemon) -> None:
    with shell() as terminal:
        before = terminal.settings()
        terminal.type(f"{RUN} {daemon.url} -- sh -c 'echo $PROGRESSD_JOB_ID be\"\"gun; exec sleep 1000'\n".encode())
        [job] = re.findall(r"(\S+) begun", terminal.read(rb"begun\r\n").decode())
        daemon.request("DELETE", f"/api/jobs/{job}").raise_for_status()
        ended = "progressd: ended 1 process of the command"
        terminal.read(f"progressd: job {job} was cancelled: stopping the command\r\n{ended}\r\n% $".encode())
        assert terminal.settings() == before


def test_a_closed_terminal_ends_the_command(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    script = f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 1000"
    words = ["setsid", "--ctty", *run(NOBODY, "--", "sh", "-c", script)]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        until((tmp_path / "pid").exists)
        os.close(ours)
        assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_failed_start_leaves_the_terminal_unchanged() -> None:
    with shell() as terminal:
        before = terminal.settings()
        terminal.type(f"{RUN} {NOBODY} -- /no/such; echo status $?\n".encode())
        output = terminal.read(rb"status 127\r\n% $")
        assert b"progressd: /no/such: No such file or directory\r\n" in output
        assert terminal.settings() == before


def test_a_closed_input_stays_closed() -> None:
    script = 'exec <&-; exec "$@"'
    words = ["sh", "-c", script, "sh", *run(NOBODY, "--", "sh", "-c", "ls -l /proc/self/fd | grep -c ' 0 -> /dev/pts'")]
    assert shown(words)[0].startswith(b"0\r\n")
