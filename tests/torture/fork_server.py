"""Start daemons without half a second of imports: multiprocessing's server has loaded everything, and forks them.

    async with ForkServer(tmp_path).daemon(state_dir) as daemon:
        url = await daemon.listening()
        daemon.kill(signal.SIGKILL)

A forked daemon runs the main function of `progressd serve` in its own process, with its log in a file.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import httpx
import trio

PATIENCE = 30.0  # seconds for a start or an end
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["progressd.app", "progressd.cli.commands.serve", __name__])


class ForkedDaemon:
    """A daemon's process."""

    def __init__(self, process: ForkServerProcess, stdout: trio.lowlevel.FdStream, log: Path) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process = process
        self._stdout = stdout
        self._log = log

    async def listening(self) -> str:
        """Wait until it listens, and return its URL. Fails if it ends instead."""
        line = b""
        with trio.fail_after(PATIENCE):
            while not line.endswith(b"\n"):
                chunk = await self._stdout.receive_some()
                assert chunk, f"it did not start: see {self._log}"
                line += chunk
        return line.decode().removeprefix("listening on ").strip()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        if self._process.exitcode is None:
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
        """Wait for its end, and return its exit status, negative for a signal."""
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(self._process.sentinel)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


class ForkServer:
    """The client of the server. The daemons' log is in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "daemon.log"

    @asynccontextmanager
    async def daemon(
        self, state_dir: Path, environment: Mapping[str, str] | None = None, config: Path | None = None
    ) -> AsyncGenerator[ForkedDaemon]:
        """Run a daemon on any free port. Kill it at the end, unless it has ended."""
        arguments = ["serve", "--port", "0", "--state-dir", str(state_dir)]
        if config is not None:
            arguments += ["--config", str(config)]
        async with self.run(arguments, environment) as daemon:
            yield daemon

    @asynccontextmanager
    async def run(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[ForkedDaemon]:
        """Run `progressd` with these arguments. Kill it at the end, unless it has ended."""
        reading, writing = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run, args=(arguments, dict(environment or {}), self._log, writing))
        with reading:
            with writing:
                process.start()
            async with trio.lowlevel.FdStream(os.dup(reading.fileno())) as stdout:
                daemon = ForkedDaemon(process, stdout, self._log)
                try:
                    yield daemon
                finally:
                    with trio.CancelScope(shield=True):
                        daemon.kill()
                        await daemon.ended()
        process.close()


def client_of(url: str) -> httpx.AsyncClient:
    """Return an HTTP client of a daemon."""
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False, verify=False)


def start_with(library: Path) -> None:
    """Start the server with disk.c loaded, which is inactive until a daemon gets a directory."""
    os.environ["LD_PRELOAD"] = str(library)
    try:
        (first := CONTEXT.Process(target=int)).start()
        first.join()
    finally:
        del os.environ["LD_PRELOAD"]


def _run(arguments: Sequence[str], environment: Mapping[str, str], log: Path, stdout: Connection) -> None:
    from progressd.cli.main import main

    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(written, 2)
    os.dup2(stdout.fileno(), 1)
    os.close(written)
    stdout.close()
    os.environ.update(environment)
    if "TORTURE_DISK" in os.environ:
        ctypes.CDLL(None).torture_begin()  # activates disk.c
    main(arguments)
