"""The composition root: build all parts, start the named tasks, and stop them in order."""

import gc
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from progressd.auth.authenticator import Authenticator
from progressd.auth.limits import ConnectionLimiter, RateLimiter
from progressd.broadcast.broadcaster import Broadcaster
from progressd.commit_log.local import LocalLog
from progressd.config.reload import Reload
from progressd.config.settings import Settings
from progressd.core.close_codes import DRAINING
from progressd.core.errors import StoreFailed
from progressd.core.eta import Forecasts
from progressd.core.messages import JobStatus
from progressd.engine.attention import Attention
from progressd.engine.follower import Follower
from progressd.engine.health import StoreHealth
from progressd.engine.history import History
from progressd.engine.ingest import Ingest
from progressd.engine.log_reader import LogReaders
from progressd.engine.queue_estimates import QueueEstimates
from progressd.engine.registry import Batches, Registry
from progressd.engine.retention import run_retention
from progressd.engine.uploads import UploadedJobs
from progressd.engine.view import Engine
from progressd.files.job_files import JobFiles
from progressd.files.state_dir import own_state_dir
from progressd.http.app import build_app
from progressd.http.context import AppContext
from progressd.http.job_cache import JobResponseCache
from progressd.http.metrics import MetricsCollector
from progressd.http.middleware import AccessMiddleware
from progressd.http.server.hypercorn import HTTPServer
from progressd.http.stats_history import StatsHistory
from progressd.http.streams import HTTPStreams
from progressd.lifecycle import Announcer, ShutdownDeadline, ignore_alone, signals_received
from progressd.net.bind import Sockets, open_sockets
from progressd.net.connection_log import ConnectionLog
from progressd.net.listener import Listener
from progressd.net.request import BasePath
from progressd.net.tls import tls_context
from progressd.producers.unix_socket import UnixSocket
from progressd.runner.runner import Runner
from progressd.store.errors import cannot_open
from progressd.store.sqlite import SQLiteStore
from progressd.system.log import set_level
from progressd.system.systemd import Check, Notifier, Watchdog, run_status, watchdog_seconds
from progressd.ws.server import WebSocketServer

STAGGER: Final = 1.0  # maximum seconds over which watchers are disconnected, so that they do not all reconnect at once
STAGGER_EACH: Final = 0.005  # seconds between two disconnects; no client is accepted meanwhile
LAST_WORK: Final = 30.0  # seconds for all work after the drain timeout, including killing jobs that ignore SIGTERM
CLOSE_TIMEOUT: Final = 5.0  # seconds for the last bytes of connections
# A connection leaves no reference cycle, and a request 8 objects of werkzeug. So collections are rare. Every second one
# includes the second generation, and takes at most 10 ms, while thousands connect. A full collection takes 10 ms with
# 500 watchers, and 0.4 s with 10,000.
GC_THRESHOLDS: Final = (10_000, 0, 60)
UNEXPECTED_EXIT: Final = "the daemon ended without a signal to stop"

log = structlog.get_logger(__name__)


async def serve(
    settings: Settings, read_settings: Callable[[], Settings], *, on_listening: Callable[[str], None]
) -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain. Further signals shorten the drain; SIGHUP reloads settings.

    On a terminal, SIGHUP means that the terminal was closed. Then the daemon stops, unless it was started to ignore it.
    `on_listening` receives the URL once the daemon responds there. Raises SettingsError when it cannot start.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    watchdog = watchdog_seconds(os.environ)
    on_terminal = os.isatty(0)
    numbers = {signal.SIGTERM, signal.SIGINT}
    if not on_terminal or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.add(signal.SIGHUP)
    ignore_alone()
    with closing(Notifier(os.environ)) as notify, signals_received(numbers) as signals:
        async with started(settings, os.environ, read_settings) as (daemon, sockets):
            gc.collect()
            gc.freeze()  # code and settings are permanent: a full collection would spend 35 ms on them
            await daemon.run(sockets, signals, notify, on_listening, watchdog, on_terminal=on_terminal)
        if daemon.services.ready:
            raise RuntimeError(UNEXPECTED_EXIT)  # a task leaked a cancellation, without an error
    log.info("stopped")


@asynccontextmanager
async def started(
    settings: Settings,
    environ: MutableMapping[str, str],
    read_settings: Callable[[], Settings] | None = None,
    open_store: Callable[[Path, str], SQLiteStore] = SQLiteStore.open,
) -> AsyncGenerator[tuple["Daemon", Sockets]]:
    """Open the state directory and the sockets, and start the tasks. No requests are served yet.

    `read_settings` reads the settings again for a reload.
    """
    with (
        own_state_dir(settings.state_dir),
        open_sockets(settings, environ) as sockets,
        closing(open_store(settings.state_dir / "progressd.db", settings.store.synchronous)) as store,
    ):
        async with trio.open_nursery() as tasks:
            daemon = Daemon(settings, store, tasks, read_settings or (lambda: settings))
            await daemon.start()
            yield daemon, sockets
            tasks.cancel_scope.cancel()


class Daemon:
    """All parts of the daemon, in the order of the data flow."""

    def __init__(
        self, settings: Settings, store: SQLiteStore, tasks: trio.Nursery, read_settings: Callable[[], Settings]
    ) -> None:
        limits = settings.limits
        self.settings = settings
        self.base = BasePath(settings.server.base_path)
        self.store = store
        self.tasks = tasks
        self.registry = Registry(store)
        self.batches = Batches(store)
        self.health = StoreHealth()
        self.history = History(store, self.registry, self.batches, self.health, self.base)
        self.files = JobFiles(
            settings.state_dir,
            limits.min_free_bytes,
            limits.max_stored_bytes,
            settings.log.max_bytes_per_job,
            settings.store.upload_retention,
        )
        self.broadcaster = Broadcaster(
            self.history, nursery=tasks, offset=store.first_offset - 1, limit=limits.send_buffer_bytes
        )
        self.forecasts = Forecasts()
        self.queue_estimates = QueueEstimates(self.registry, self.forecasts, settings.runner.concurrency)
        self.follower = Follower(
            store, self.registry, self.batches, self.broadcaster, self.health, self.forecasts, self.base
        )
        self.commit_log = LocalLog(self.follower.apply)
        self.ingest = Ingest(self.commit_log, self.follower, store, self.registry, self.files.logs)
        self.uploaded_jobs = UploadedJobs(self.ingest, self.registry, self.files)
        self.producers = UnixSocket(self.ingest, settings)
        self.runner = Runner(settings, self.registry, self.ingest, self.files)
        self.connection_log = ConnectionLog()
        self.authenticator = Authenticator(settings.auth)
        self.rate_limits = RateLimiter(settings)
        self.log_readers = LogReaders(self.files.logs, self.registry)
        self.engine = Engine(
            store,
            self.registry,
            self.batches,
            self.history,
            self.broadcaster,
            self.ingest,
            self.log_readers,
            Attention(self.registry, self.forecasts),
        )
        self.connection_limiter = ConnectionLimiter(settings)
        self.websockets = WebSocketServer(
            settings, self.authenticator, self.rate_limits, self.connection_limiter, self.engine
        )
        self.streams = HTTPStreams(self.connection_limiter)
        self.announcer = Announcer(self.websockets, self.streams)
        self.services = self._services()
        self.http = HTTPServer(AccessMiddleware(build_app(), self.services), self.base, settings)
        self.reload = Reload(settings, read_settings)
        self.reload.register(lambda new: partial(self._use, new))
        self.reload.register(lambda new: self.authenticator.apply_settings(new.auth))

    def _services(self) -> AppContext:
        metrics = MetricsCollector(
            engine=self.engine,
            job_files=self.files.usage,
            websockets=self.websockets,
            streams=self.streams,
            connection_log=self.connection_log,
            workers=self.settings.runner.concurrency,
        )
        return AppContext(
            settings=self.settings,
            authenticator=self.authenticator,
            rate_limits=self.rate_limits,
            engine=self.engine,
            files=self.files,
            uploaded_jobs=self.uploaded_jobs,
            streams=self.streams,
            metrics=metrics,
            stats_history=StatsHistory(metrics),
            answers=JobResponseCache(self.store.id, self.base, self.forecasts.usual_steps),
            queue_estimates=self.queue_estimates,
            base=self.base,
        )

    async def start(self) -> None:
        """Load the state and start the background tasks. Raises SettingsError."""
        self.authenticator.load()
        try:
            await self.registry.load()
            await self.batches.load()
            self.forecasts.add(await self.store.runs())
            await self.files.prepare(self.store)
        except StoreFailed as error:
            raise cannot_open(self.settings.state_dir / "progressd.db", error) from error
        self.tasks.start_soon(self.store.run)
        self.tasks.start_soon(self.ingest.run)
        self.tasks.start_soon(self.files.logs.run)
        self.tasks.start_soon(self.services.metrics.run)
        self.tasks.start_soon(self.services.stats_history.run)
        self.tasks.start_soon(self.websockets.heartbeat.run)
        self.tasks.start_soon(self.authenticator.run)
        self.tasks.start_soon(self.uploaded_jobs.run)
        retention = partial(run_retention, keep_logs=self.settings.log.retention)
        self.tasks.start_soon(retention, self.settings.store.retention, self.store, self.registry, self.files)

    async def run(
        self,
        sockets: Sockets,
        signals: AsyncIterator[int],
        notify: Notifier,
        on_listening: Callable[[str], None],
        watchdog: float | None = None,
        *,
        on_terminal: bool = False,
        close_timeout: float = CLOSE_TIMEOUT,
    ) -> None:
        """Serve until a signal, then drain: first the jobs, then the connections. Further signals shorten the drain.

        `watchdog`: seconds after which systemd kills a daemon that does not report. `on_terminal`: SIGHUP stops it.
        `close_timeout`: seconds for the last bytes of connections.
        """
        deadline = ShutdownDeadline(signals)
        async with trio.open_nursery() as ending:
            async with trio.open_nursery() as connections:
                listener = self._listener(connections)
                async with trio.open_nursery() as accepting:
                    self._serve(accepting, listener, sockets)
                    notify("READY=1")
                    accepting.start_soon(run_status, notify, self._status)
                    if watchdog is not None:
                        accepting.start_soon(Watchdog(notify, watchdog, self._checks(sockets)).run)
                    on_listening(sockets.url)
                    log.info("ready", url=sockets.url, unfinished_jobs=len(self.registry.unfinished))
                    await self._until_stopped(signals, notify, on_terminal)
                    ending.start_soon(deadline.run)
                    await self._finish_work(deadline, close_timeout)
                    accepting.cancel_scope.cancel()
                for listening in sockets.tcp:
                    listener.stop(listening)
                ending.start_soon(self._abort_late, connections.cancel_scope, deadline, close_timeout)
                await self._close_connections(listener)
            ending.cancel_scope.cancel()
        if self.services.ready:
            raise RuntimeError(UNEXPECTED_EXIT)

    def _serve(self, accepting: trio.Nursery, listener: Listener, sockets: Sockets) -> None:
        """Accept connections and run jobs."""
        for listening in sockets.tcp:
            accepting.start_soon(listener.run, listening)
        accepting.start_soon(self.producers.run, *sockets.unix)
        accepting.start_soon(self.runner.run)
        accepting.start_soon(self.announcer.run, self.health, self._settle)
        self.services.ready = True

    async def _until_stopped(self, signals: AsyncIterator[int], notify: Notifier, on_terminal: bool) -> None:
        while (number := await anext(signals)) == signal.SIGHUP and not on_terminal:
            notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self.reload()
            notify("READY=1", f"STATUS={self._status()}")
        log.info("stopping", signal=signal.Signals(number).name)
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round((self.settings.shutdown.drain_timeout + LAST_WORK) * 1e6)}")

    async def _finish_work(self, deadline: ShutdownDeadline, close_timeout: float) -> None:
        """Reject new work, notify the watchers, and wait for jobs, transfers and the lines of producers."""
        shutdown, transfers = self.settings.shutdown, self.services.transfers
        seconds = shutdown.drain_timeout if shutdown.wait_for_jobs or transfers.ends else 0
        until = trio.current_time() + seconds
        self.services.ready = False
        self.announcer.stop(seconds)
        self.runner.stop_taking()
        with deadline.limit(seconds):
            if shutdown.wait_for_jobs:
                await self.runner.done.wait()
            while transfers.ends:  # some may begin while others are waited for
                await next(iter(transfers.ends)).wait()
        with deadline.limit(max(until - trio.current_time(), close_timeout)):
            await self.producers.drain()

    async def _close_connections(self, listener: Listener) -> None:
        """Close every connection cleanly. The surrounding nursery ends with the last connection."""
        await self.http.drain()
        await listener.drain()
        self.streams.close(DRAINING)
        await self.websockets.close(DRAINING, min(STAGGER, STAGGER_EACH * len(self.websockets)))

    async def _abort_late(self, connections: trio.CancelScope, deadline: ShutdownDeadline, seconds: float) -> None:
        with deadline.limit(seconds):
            await trio.sleep_forever()
        self.http.abort()
        connections.cancel()

    def _listener(self, connections: trio.Nursery) -> Listener:
        settings = self.settings
        listener = Listener(
            self.websockets.handle,
            self.http.serve,
            connections,
            settings.limits,
            self.connection_log,
            tls=tls_context(settings.server),
            base=self.base,
            trusted_proxies=settings.server.trusted_proxies,
        )
        self.reload.register(
            lambda new: partial(listener.apply_settings, new, tls_context(new.server, self.settings.server))
        )
        return listener

    def _checks(self, sockets: Sockets) -> dict[str, Check]:
        ports = {
            f"no connection is accepted at {one.getsockname()}": one.accepts for one in [*sockets.tcp, *sockets.unix]
        }
        return {"ingest stores no changes": self.ingest.probe, **ports}

    def _status(self) -> str:
        unfinished = self.registry.unfinished.values()
        processing = sum(job.status is JobStatus.PROCESSING for job in unfinished)
        jobs = f"jobs: {processing} running, {len(unfinished) - processing} queued; watchers: {len(self.websockets)}"
        return "; ".join(filter(None, [self.reload.pending, jobs]))

    def _use(self, settings: Settings) -> None:
        """Apply reloaded settings."""
        self.settings = settings
        self.broadcaster.use_limit(settings.limits.send_buffer_bytes)
        self.files.apply_settings(settings.limits, settings.log)
        for part in (
            self.producers,
            self.runner,
            self.websockets,
            self.rate_limits,
            self.connection_limiter,
            self.services,
            self.http,
        ):
            part.apply_settings(settings)
        set_level(settings.log.level)

    async def _settle(self) -> None:
        try:
            await self.files.settle(self.store)
        except (StoreFailed, OSError) as error:
            log.warning("cannot delete uploads without a job, will retry at the next start", error=str(error))
