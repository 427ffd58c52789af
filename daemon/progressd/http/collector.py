"""The parts of the daemon in numbers, read when somebody asks; nothing is counted here but the event loop's lag."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from progressd.broadcast.broadcaster import Broadcaster
from progressd.core.batch import BatchStatus
from progressd.core.status import JobStatus
from progressd.engine.ingest import Ingest
from progressd.engine.registry import Registry
from progressd.files.quota import DiskUsage
from progressd.http.open_streams import StreamRegistry
from progressd.net.connection_log import ConnectionLog
from progressd.store.base import Store
from progressd.ws.server import WebSocketServer

LAG_INTERVAL: Final = 0.5  # seconds between two looks at the event loop


@dataclass(eq=False)
class MetricsCollector(Collector):
    """The parts of the daemon that have something to tell in numbers. `run` watches the event loop."""

    jobs: Registry
    broadcaster: Broadcaster
    ingest: Ingest
    store: Store
    stored: DiskUsage
    watchers: WebSocketServer
    streams: StreamRegistry
    connection_log: ConnectionLog
    workers: int
    refusals: Counter[str]  # requests, by the status
    started_at: float = field(default_factory=time.time)  # seconds since 1970
    lag: float = 0.0  # seconds by which the event loop was late when last looked at
    most_lag: float = 0.0

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.time() - self.started_at

    async def run(self) -> None:
        """Look at the event loop until cancelled."""
        while True:
            due = trio.current_time() + LAG_INTERVAL
            await trio.sleep_until(due)
            self.lag = max(0.0, trio.current_time() - due)
            self.most_lag = max(self.most_lag, self.lag)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' library."""
        yield from self._of_jobs()
        yield from self._of_events()
        yield from self._of_connections()
        yield _gauge("superbook_uptime_seconds", "Since the start of the daemon.", self.uptime)
        yield _gauge("superbook_workers", "Jobs that the daemon runs at a time.", self.workers)
        yield _gauge("progressd_event_loop_lag_seconds", "By how much the event loop is late.", self.lag)
        yield _gauge("progressd_event_loop_lag_max_seconds", "By how much it has been late at most.", self.most_lag)

    def _of_jobs(self) -> Iterator[Metric]:
        counters = self.ingest.counters
        yield _counters(
            "superbook_jobs", "Jobs that got into this status.", "status", [(s, counters.jobs[s]) for s in JobStatus]
        )
        yield _counters(
            "superbook_batches", "Batches, likewise.", "status", [(s, counters.batches[s]) for s in BatchStatus]
        )
        yield from counters.processing.collect()
        yield _counter("superbook_pages_processed", "Pages of completed jobs.", counters.pages)
        yield _gauge("progressd_unfinished_jobs", "Jobs that have not finished.", len(self.jobs.unfinished))
        yield _gauge(
            "progressd_job_files_bytes", "Bytes of the files of jobs, uploads under way too.", self.stored.total
        )

    def _of_events(self) -> Iterator[Metric]:
        counters, broadcaster = self.ingest.counters, self.broadcaster
        yield _counters(
            "progressd_events",
            "Events of producers, and of the daemon itself.",
            "outcome",
            [("accepted", counters.events), ("refused", counters.refused)],
        )
        yield _gauge("progressd_ingest_queue_length", "Entries that wait to be decided.", self.ingest.queued)
        yield from self.ingest.health.commit_durations.collect()
        yield from self.store.delete_durations.collect()
        yield _counter(
            "progressd_deliveries",
            "Messages, each once for each watcher, also where a filter keeps it back; without replays.",
            broadcaster.traffic.messages,
        )
        yield _counter("progressd_delivered_bytes", "Bytes of these deliveries, in frames.", broadcaster.traffic.bytes)
        yield _gauge("progressd_active_topics", "Topics that somebody watches.", broadcaster.watched)
        yield _counter(
            "progressd_messages_coalesced", "Progress that a newer one replaced.", self.watchers.budget.coalesced
        )
        yield _gauge("progressd_send_buffer_bytes", "Bytes that wait for watchers.", self.watchers.budget.used)

    def _of_connections(self) -> Iterator[Metric]:
        connection_log = self.connection_log
        yield _gauge("superbook_websocket_connections", "Open WebSockets.", len(self.watchers))
        yield _gauge("progressd_http_streams", "Server-sent events and long polls that are open.", len(self.streams))
        yield _gauge("progressd_connections", "Open connections of any kind.", connection_log.open)
        yield _counter("progressd_connections_accepted", "Connections so far.", connection_log.accepted)
        closed = CounterMetricFamily(
            "progressd_connections_closed", "Connections that have ended.", labels=("outcome", "reason")
        )
        for (outcome, reason), count in sorted(connection_log.counts.items()):
            closed.add_metric((outcome, reason), count)
        yield closed
        refused = [
            (reason, count) for (kind, reason), count in sorted(connection_log.counts.items()) if kind == "refused"
        ]
        yield _counters("progressd_handshakes_refused", "Connections that were not let in.", "reason", refused)
        said = "Requests refused for want of a right, room or time, but for probes of health."
        yield _counters("progressd_requests_refused", said, "status", sorted(self.refusals.items()))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counters(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in values:
        family.add_metric((value,), count)
    return family
