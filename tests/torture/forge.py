"""Daemons without the half second of imports: a process that has loaded everything once forks each of them from itself.

    async with open_forge(process, tmp_path) as forge:
        async with forge.daemon(state_dir) as daemon:
            url = await daemon.listening()
            daemon.kill(signal.SIGKILL)

A forked daemon runs `progressd serve` as a shell would start it: the same main function, a process of its own, its log
in a file. Run as a program, this file is that process.
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
    """One process."""

    def __init__(self, pid: int, forge: "Forge") -> None:
        self.pid = pid
        self._forge = forge
        self.status: int | None = None  # of its end, negative for a signal

    async def listening(self) -> str:
        """The URL, once it answers there. Fails when it ends instead."""
        word, rest = await self._forge.said()
        if word == "ended":
            self.status = int(rest)
        assert word == "listening", f"{word} {rest}: see {self._forge.log}"
        return rest.removeprefix("on ")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, if it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def starved(self) -> float:
        """Seconds that its threads, taken together, have been ready to run and were given no processor."""
        waited = 0
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                waited += int((task / "schedstat").read_text().split()[1])
        return waited / 1e9

    async def ended(self) -> int:
        """Wait for its end."""
        while self.status is None:
            word, rest = await self._forge.said()
            if word == "ended":
                self.status = int(rest)
        return self.status


class Forge:
    """The client of the process; one daemon at a time."""

    def __init__(self, orders: trio.lowlevel.FdStream, told: trio.lowlevel.FdStream, log: Path) -> None:
        self.log = log
        self._orders = orders
        self._told = told
        self._text = b""

    async def said(self) -> tuple[str, str]:
        """The next line, of the process or of the daemon in it: its first word, and the rest."""
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._text:
                chunk = await self._told.receive_some()
                assert chunk, "the forge has ended"
                self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        return word, rest

    @asynccontextmanager
    async def daemon(
        self, state_dir: Path, environment: Mapping[str, str] | None = None, config: Path | None = None
    ) -> AsyncGenerator[ForgedDaemon]:
        """A daemon over a state directory, on any free port; killed at the end unless it has ended."""
        arguments = ["serve", "--port", "0", "--state-dir", str(state_dir)]
        if config is not None:
            arguments += ["--config", str(config)]
        async with self.run(arguments, environment) as daemon:
            yield daemon

    @asynccontextmanager
    async def run(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[ForgedDaemon]:
        """`progressd` with these arguments; killed at the end unless it has ended."""
        order = {"arguments": arguments, "environment": dict(environment or {}), "log": str(self.log)}
        await self._orders.send_all(json.dumps(order).encode() + b"\n")
        word, rest = await self.said()
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
    """Start the process, with these variables besides its own; it may serve one test after the other."""
    with Popen([sys.executable, __file__], stdin=PIPE, stdout=PIPE, env={**os.environ, **environment}) as process:
        yield process  # the end of its input ends it


@asynccontextmanager
async def open_forge(process: Popen[bytes], directory: Path) -> AsyncGenerator[Forge]:
    """Use the process; the log of the daemons is in `directory`."""
    assert process.stdin is not None
    assert process.stdout is not None
    async with (
        trio.lowlevel.FdStream(os.dup(process.stdin.fileno())) as orders,
        trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as told,
    ):
        yield Forge(orders, told, directory / "daemon.log")


def _become_daemon(order: dict[str, Any]) -> None:
    from progressd.cli.main import main

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.update(order["environment"])
    if "TORTURE_DISK" in os.environ:
        ctypes.CDLL(None).torture_begin()  # of disk.c, which was loaded before anybody knew which disk
    main(order["arguments"])


def _forge() -> None:
    import progressd.app
    import progressd.cli.commands.serve  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            _say(f"forked {os.getpid()}")  # said by the child, so that nothing it says can come before
            try:
                _become_daemon(json.loads(line))
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                os._exit(status)
        _say(f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def _say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    _forge()
