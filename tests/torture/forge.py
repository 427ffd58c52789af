"""Start daemons without half a second of imports: a process that has loaded everything forks them.

    async with open_forge(process, tmp_path) as forge:
        async with forge.daemon(state_dir) as daemon:
            url = await daemon.listening()
            daemon.kill(signal.SIGKILL)

A forked daemon runs the main function of `progressd serve` in its own process, with its log in a file. As a program,
this file is the process that forks.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import trio

PATIENCE = 30.0  # seconds for a start or an end


class ForgedDaemon:
    """A daemon's process."""

    def __init__(self, pid: int, forge: "Forge") -> None:
        self.pid = pid
        self._forge = forge
        self.status: int | None = None  # exit status, negative for a signal

    async def listening(self) -> str:
        """Wait until it listens, and return its URL. Fails if it ends instead."""
        word, rest = await self._forge.next_line()
        if word == "ended":
            self.status = int(rest)
        assert word == "listening", f"{word} {rest}: see {self._forge.log}"
        return rest.removeprefix("on ")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def starved(self) -> float:
        """Return the seconds that its threads waited for a processor."""
        waited = 0
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                waited += int((task / "schedstat").read_text().split()[1])
        return waited / 1e9

    async def ended(self) -> int:
        """Wait for its end, and return its status."""
        while self.status is None:
            word, rest = await self._forge.next_line()
            if word == "ended":
                self.status = int(rest)
        return self.status


class Forge:
    """The client of the forking process. It runs one daemon at a time."""

    def __init__(self, orders: trio.lowlevel.FdStream, replies: trio.lowlevel.FdStream, log: Path) -> None:
        self.log = log
        self._orders = orders
        self._replies = replies
        self._text = b""

    async def next_line(self) -> tuple[str, str]:
        """Return the next line of the process or its daemon: its first word, and the rest."""
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._text:
                chunk = await self._replies.receive_some()
                assert chunk, "the forge has ended"
                self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        return word, rest

    @asynccontextmanager
    async def daemon(
        self, state_dir: Path, environment: Mapping[str, str] | None = None, config: Path | None = None
    ) -> AsyncGenerator[ForgedDaemon]:
        """Run a daemon on any free port. Kill it at the end, unless it has ended."""
        arguments = ["serve", "--port", "0", "--state-dir", str(state_dir)]
        if config is not None:
            arguments += ["--config", str(config)]
        async with self.run(arguments, environment) as daemon:
            yield daemon

    @asynccontextmanager
    async def run(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[ForgedDaemon]:
        """Run `progressd` with these arguments. Kill it at the end, unless it has ended."""
        order = {"arguments": arguments, "environment": dict(environment or {}), "log": str(self.log)}
        await self._orders.send_all(json.dumps(order).encode() + b"\n")
        word, rest = await self.next_line()
        assert word == "forked", f"{word} {rest}"
        daemon = ForgedDaemon(int(rest), self)
        try:
            yield daemon
        finally:
            with trio.CancelScope(shield=True):
                if daemon.status is None:
                    daemon.kill()
                    await daemon.ended()


@contextmanager
def forge_process(environment: Mapping[str, str]) -> Iterator[Popen[bytes]]:
    """Start the process with these additional variables. Tests may share it."""
    with Popen([sys.executable, __file__], stdin=PIPE, stdout=PIPE, env={**os.environ, **environment}) as process:
        yield process  # it ends at the end of its input


@asynccontextmanager
async def open_forge(process: Popen[bytes], directory: Path) -> AsyncGenerator[Forge]:
    """Connect to the process. The log of its daemons is in `directory`."""
    assert process.stdin is not None
    assert process.stdout is not None
    async with (
        trio.lowlevel.FdStream(os.dup(process.stdin.fileno())) as orders,
        trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as replies,
    ):
        yield Forge(orders, replies, directory / "daemon.log")


def _become_daemon(order: dict[str, Any]) -> None:
    from progressd.cli.main import main

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.update(order["environment"])
    if "TORTURE_DISK" in os.environ:
        ctypes.CDLL(None).torture_begin()  # activates disk.c
    main(order["arguments"])


def _forge() -> None:
    import progressd.app
    import progressd.cli.commands.serve  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            _write_line(f"forked {os.getpid()}")  # by the child, so that it is its first line
            try:
                _become_daemon(json.loads(line))
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                os._exit(status)
        _write_line(f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def _write_line(line: str) -> None:
    os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    _forge()
