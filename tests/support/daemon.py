"""The whole daemon in the process of the test, with real sockets and its own state directory.

    async with running_daemon(tmp_path, limits={"max_connections": 1}) as daemon:
        await daemon.report(registered(ID), progress(ID, 5, 12))
        async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
            assert (await watcher.receive())["type"] == "status_change"

The fixture `daemon` has the default settings.
"""

import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from progressd.app import CLOSE_TIMEOUT, Daemon, started
from progressd.config.settings import (
    BUILT_IN_PIPELINES,
    AuthSettings,
    IngestSettings,
    Limits,
    RunnerSettings,
    Server,
    Settings,
    ShutdownSettings,
    StoreSettings,
)
from progressd.core.pipeline import Pipeline
from progressd.store.sqlite import SQLiteStore
from progressd.system.systemd import Notifier
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection, wrap_client_stream
from wsproto.utilities import LocalProtocolError

from support.waiting import PATIENCE, eventually

SECTIONS = {
    "server": Server,
    "limits": Limits,
    "store": StoreSettings,
    "runner": RunnerSettings,
    "ingest": IngestSettings,
    "auth": AuthSettings,
    "shutdown": ShutdownSettings,
}


def settings_in(
    state_dir: Path, pipelines: Mapping[str, Pipeline] | None = None, **given: Mapping[str, Any]
) -> Settings:
    """Return the default settings with any free port, and the given sections."""
    assert given.keys() <= SECTIONS.keys()
    hosts = ("daemon", "progressd", "a")  # names of the daemon in tests
    ours = {
        "server": {"port": 0, "allowed_hosts": hosts},
        "runner": {"concurrency": 2},
        "ingest": {"socket": state_dir / "ingest.sock"},
        "auth": {"keys_file": state_dir / "keys.json", "token_secret_file": state_dir / "token-secret"},
    }
    sections: Any = {
        name: section(**{**ours.get(name, {}), **given.get(name, {})}) for name, section in SECTIONS.items()
    }
    return Settings(state_dir=state_dir, pipelines={**BUILT_IN_PIPELINES, **(pipelines or {})}, **sections)


class Census(NamedTuple):
    """Counts of what a connection may leak."""

    tasks: int
    descriptors: int
    watchers: int
    topics: list[str]


class RunningDaemon:
    """A daemon at `url`. `daemon` has its parts: registry, broadcaster, watchers, ingest…"""

    def __init__(self, daemon: Daemon, url: str, signals: trio.MemorySendChannel[int]) -> None:
        self.daemon = daemon
        self.settings = daemon.settings
        self.url = url
        self.address = url.removeprefix("http://")
        self.stopped = trio.Event()
        self.asked_to_stop = False
        self._signals = signals

    def kill(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Simulate a signal to the process."""
        self.asked_to_stop |= number is not signal.SIGHUP
        self._signals.send_nowait(number)

    async def stop(self) -> None:
        """Drain and stop. Disconnecting watchers takes up to a second."""
        if not self.stopped.is_set():
            self.kill()
            with trio.fail_after(PATIENCE):
                await self.stopped.wait()

    async def report(self, *events: Mapping[str, Any]) -> list[Any]:
        """Report events over the Unix socket; return the answers, once all events are durable."""
        lines = [json.dumps({"ref": number, **event}).encode() + b"\n" for number, event in enumerate(events)]
        with trio.fail_after(PATIENCE):
            socket_path = str(self.settings.ingest.socket)
            async with await trio.open_unix_socket(socket_path) as stream, trio.open_nursery() as nursery:
                nursery.start_soon(_send_all, stream, b"".join(lines))
                return [json.loads(line) for line in (await _rest_of(stream)).splitlines()]

    async def settled(self) -> Census:
        """Wait until the daemon is idle, and return the census."""
        await eventually(lambda: "progressd.engine.retention._sweep" not in names_of_tasks())
        with trio.fail_after(PATIENCE):
            await trio.testing.wait_all_tasks_blocked(0.02)
        return self.census()

    def census(self) -> Census:
        """Count in the whole process."""
        broadcaster = self.daemon.broadcaster
        return Census(
            trio.lowlevel.current_statistics().tasks_living,
            len(os.listdir("/proc/self/fd")),
            len(self.daemon.websockets),
            [*broadcaster._topics, *broadcaster._sessions.members],
        )

    async def leaves_only(self, before: Census) -> None:
        """Wait until nothing has leaked since `before`."""

        def no_more() -> bool:  # files and tasks may also be fewer than before
            now = self.census()
            fewer = now.tasks <= before.tasks and now.descriptors <= before.descriptors
            return fewer and now._replace(tasks=0, descriptors=0) == before._replace(tasks=0, descriptors=0)

        with contextlib.suppress(trio.TooSlowError):
            await eventually(no_more)
        assert no_more(), f"{self.census()} instead of {before}"

    async def connect(self, *, receive_buffer: int | None = None, local: str = "") -> trio.SocketStream:
        """Open a plain TCP connection to the daemon, from the address `local`."""
        host, port = self.address.rsplit(":", 1)
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if local:
            await sock.bind((local, 0))
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        with trio.fail_after(PATIENCE):
            await sock.connect((host, int(port)))
        return trio.SocketStream(sock)

    @asynccontextmanager
    async def watch(
        self, path: str = "/ws/jobs", headers: Mapping[str, str] | None = None, **how: Any
    ) -> AsyncGenerator["Watcher"]:
        """Connect a WebSocket client. Raises trio_websocket's ConnectionRejected."""
        rejected: list[BaseException] = []
        try:
            async with await self.connect(**how) as stream, trio.open_nursery() as nursery:
                with trio.fail_after(PATIENCE):
                    websocket = await wrap_client_stream(
                        nursery,
                        stream,
                        self.address,
                        path,
                        extra_headers=[(name.encode(), value.encode()) for name, value in (headers or {}).items()],
                        message_queue_size=1000,
                    )
                try:
                    yield Watcher(websocket, stream)
                finally:
                    with trio.move_on_after(1, shield=True):
                        await websocket.aclose()
                nursery.cancel_scope.cancel()
        except* LocalProtocolError:
            pass  # trio-websocket's reader raises it when a ping of ours crosses the client's close
        except* HandshakeError as group:  # trio-websocket's reader raises it into the nursery
            rejected += group.exceptions
        if rejected:
            raise rejected[0]

    async def rejected(
        self, path: str = "/ws/jobs", headers: Mapping[str, str] | None = None, **how: Any
    ) -> ConnectionRejected:
        """Connect a WebSocket client, and return the daemon's rejection."""
        with pytest.raises(ConnectionRejected) as rejection:
            async with self.watch(path, headers, **how):
                pass
        return rejection.value


class Watcher:
    """A WebSocket client of a daemon."""

    def __init__(self, websocket: WebSocketConnection, stream: trio.SocketStream) -> None:
        self.websocket = websocket
        self.stream = stream
        self.hello: str | None = None  # the cursor of the last `hello`

    async def receive(self) -> Any:
        """Return the next message except `hello`."""
        with trio.fail_after(PATIENCE):
            while (message := json.loads(await self.websocket.get_message())).get("type") == "hello":
                self.hello = message["cursor"]
        return message

    async def greeted(self) -> str:
        """Return the cursor of the next message, which must be `hello`."""
        with trio.fail_after(PATIENCE):
            message = json.loads(await self.websocket.get_message())
        assert message["type"] == "hello", message
        self.hello = message["cursor"]
        return self.hello

    async def receive_until(self, type_: str) -> list[Any]:
        """Return the messages up to the first of this type, inclusive."""
        messages = [await self.receive()]
        while messages[-1]["type"] != type_:
            messages.append(await self.receive())
        return messages

    async def rest(self) -> list[Any]:
        """Return all messages until the daemon closes the connection."""
        messages = []
        try:
            while True:
                messages.append(await self.receive())
        except ConnectionClosed:
            return messages

    async def closed(self) -> tuple[int, str | None]:
        """Wait for the close; return its code and reason."""
        await self.rest()
        reason = self.websocket.closed
        assert reason is not None
        return reason.code, reason.reason


class CommitGate:
    """Hold the commits of a daemon with this `open_store` until `may_commit` is set."""

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        """Hold the next commits."""
        self.committing, self.may_commit = trio.Event(), trio.Event()

    def open_store(self, path: Path, synchronous: str) -> SQLiteStore:
        """Open a store that waits for this gate."""
        gate = self

        class GatedStore(SQLiteStore):
            async def commit(self, *what: Any) -> None:
                gate.committing.set()
                await gate.may_commit.wait()
                await super().commit(*what)

        return GatedStore.open(path, synchronous)


@asynccontextmanager
async def running_daemon(
    directory: Path,
    read_settings: Callable[[], Settings] | None = None,
    open_store: Callable[[Path, str], SQLiteStore] = SQLiteStore.open,
    close_timeout: float = CLOSE_TIMEOUT,
    **given: Any,
) -> AsyncGenerator[RunningDaemon]:
    """Run a daemon over `directory`/state with settings by section, `limits={"max_uploads": 4}`. Stop it cleanly.

    `open_store` opens its database, such as `partial(SQLiteStore.open, busy_timeout=1)` or that of a subclass.
    """
    send_signal, signals = trio.open_memory_channel[int](10)
    with send_signal, signals:
        settings = settings_in(directory / "state", **given)
        async with started(settings, {}, read_settings, open_store) as (daemon, sockets):
            running = RunningDaemon(daemon, sockets.url, send_signal)
            answers = trio.Event()

            async def run() -> None:
                notify = Notifier({})
                await daemon.run(sockets, signals, notify, lambda _url: answers.set(), close_timeout=close_timeout)
                assert running.asked_to_stop, "the daemon ended unexpectedly"
                running.stopped.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                with trio.fail_after(PATIENCE):
                    await answers.wait()
                await eventually(
                    lambda: daemon.runner._slots.value < daemon.settings.runner.concurrency
                )  # it has looked for orphans
                try:
                    yield running
                except BaseException:
                    daemon.http.abort()  # a failed test may leave a client that does not read
                    raise
                await running.stop()
                nursery.cancel_scope.cancel()


def names_of_tasks() -> set[str]:
    """Return the names of all tasks."""
    names, left = set(), [trio.lowlevel.current_root_task()]
    while left:
        if (task := left.pop()) is not None:
            names.add(task.name)
            left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return names


async def _send_all(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def _rest_of(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while chunk := await stream.receive_some():
        data += chunk
    return data


def registered(job_id: str, **data: Any) -> dict[str, Any]:
    """Return the event of a new job."""
    return {"type": "job_created", "job_id": job_id, "data": data}


def progress(job_id: str, step: int, total: int = 100, name: str = "") -> dict[str, Any]:
    """Return the event of a step. The first one starts the job."""
    return {
        "type": "progress",
        "job_id": job_id,
        "data": {"current_step": step, "total_steps": total, "step_name": name},
    }


def completed(job_id: str, **data: Any) -> dict[str, Any]:
    """Return the event of a successful end."""
    return {"type": "completed", "job_id": job_id, "data": data}


def failed(job_id: str, message: str) -> dict[str, Any]:
    """Return the event of a failure."""
    return {"type": "error", "job_id": job_id, "data": {"message": message}}


def status_change(job_id: str, new: str, old: str | None = None) -> dict[str, Any]:
    """Return the event of a start or a cancellation."""
    data = {"new_status": new} if old is None else {"old_status": old, "new_status": new}
    return {"type": "status_change", "job_id": job_id, "data": data}
